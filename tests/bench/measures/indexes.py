"""What each index that people need costs a job: its three statements with the index and without it. A part of `people`.

Each time in one transaction that is taken back, so that nothing is left but dead rows. The jobs carry all numbers and
a batch: those that lack them are not in the indexes of these.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import CONNECTIONS
from bench.report import Spread, print_table
from worker.cancellation.answer import Order
from worker.cancellation.lifecycle import Transition
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger import results, transitions
from worker.ledger.attempts import AttemptRow
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bench.bench import Bench
    from bench.ledgers import Ledger
    from worker.ledger.claims import AttemptClaim

JOBS = 1_024
GROUP = 64  # in one statement
ALL = (
    *("ix_cancellations_connection", "ix_cancellations_batch", "ix_cancellations_failed"),
    *(
        "ix_cancellations_reference",
        "ix_cancellations_number",
        "ix_cancellations_old_document",
        "ix_documents_kept_at",
    ),
)
WITHOUT = {"nothing": (), **{name: (name,) for name in ALL}, "all of these": ALL}
STATEMENTS = ("accept", "claim", "record")


def run(bench: Bench, ledger: Ledger) -> None:
    engine = open_ledger(ledger.url, pool_size=1, plan_once=True)  # as a worker does
    names = list(WITHOUT)
    for number in range(bench.options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with engine.connect() as db:
                for index in WITHOUT[name]:
                    db.execute(text(f"DROP INDEX {index}"))
                _live(db, GROUP)  # plans are made anew
                facts = _live(db, JOBS)
                db.rollback()
            bench.numbers.append({"contender": OURS.name, "round": number, "without": name, **facts})
    engine.dispose()
    columns = (*STATEMENTS, "wal")
    print_table(
        f"{JOBS:,} jobs with all numbers, {GROUP} in a statement: PostgreSQL without an index",
        ("without", *(f"{name}, µs a job" for name in STATEMENTS), "WAL, bytes a job"),
        [[name, *(Spread.of(bench.values(OURS.name, each, without=name)) for each in columns)] for name in names],
    )


def _live(db: Connection, count: int) -> dict[str, float]:
    """Take that many jobs to their end; return microseconds a job of each statement, and bytes of the log."""
    began_at = db.execute(text("SELECT pg_current_wal_insert_lsn()")).scalar_one()
    spent = dict.fromkeys(STATEMENTS, 0.0)
    for _ in range(count // GROUP):
        jobs = [_job(n) for n in range(GROUP)]
        times = [time.perf_counter()]
        transitions.accept(db, jobs)
        times.append(time.perf_counter())
        shares = {f"shop-{n}": GROUP // CONNECTIONS for n in range(CONNECTIONS)}
        claimed = [claim for each in transitions.claim_next(db, shares, "bench", 60.0).values() for claim in each]
        assert GROUP == len(claimed)
        times.append(time.perf_counter())
        results.commit_results(db, [_ended(claim) for claim in claimed])
        times.append(time.perf_counter())
        for number, name in enumerate(STATEMENTS):
            spent[name] += (times[number + 1] - times[number]) * 1e6 / count
    written = db.execute(
        text("SELECT pg_current_wal_insert_lsn() - CAST(:at AS pg_lsn)"), {"at": began_at}
    ).scalar_one()
    return {**spent, "wal": float(written) / count}


def _job(number: int) -> CancelRequest:
    name = uuid.uuid4().hex
    return CancelRequest(
        connection_id=f"shop-{number % CONNECTIONS}",
        order_id=name,
        reference_id=f"R-{name}",
        order_number=f"#{name[:12]}",
        batch="monday.csv-0123456789ab",
    )


def _ended(claim: AttemptClaim) -> results.AttemptResult:
    row = AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="cancelled", status=200)
    transition = Transition(
        status=Status.SUCCEEDED,
        attempts=1,
        reason="cancelled",
        verdict=Verdict.CANCELLED,
        evidence=Evidence.RESPONSE,
        order=Order(id=claim.order_id, status="cancelled", shipped=False, document="{}"),
    )
    return results.AttemptResult(claim=claim, attempts=(row,), transition=transition)
