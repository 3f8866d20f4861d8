"""What each index that people need costs a job: its statements with and without the index. A part of `people`.

In CPU time of the server's process, which a busy machine moves less than a clock. Each time in one transaction that is
taken back, so that nothing is left but dead rows. The jobs carry all numbers and a batch: those that lack them are not
in the indexes of these.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from harness.answered import cancelled
from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import CONNECTIONS
from bench.processes import scheduled_seconds
from bench.report import Spread, print_table
from worker.cancellation.request import CancelRequest
from worker.ledger import results, transitions
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

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
    for number in bench.rounds():
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with engine.connect() as db:
                for index in WITHOUT[name]:
                    db.execute(text(f"DROP INDEX {index}"))
                _live(db, GROUP)  # plans are made anew
                facts = _live(db, JOBS)
                db.rollback()
            bench.numbers.append({"contender": OURS.name, "round": number, "without": name, **facts})
    engine.dispose()
    columns = (*STATEMENTS, "in all", "wal")
    print_table(
        f"{JOBS:,} jobs with all numbers, {GROUP} in a statement: PostgreSQL without an index",
        ("without", *(f"{name}, µs a job" for name in (*STATEMENTS, "in all")), "WAL, bytes a job"),
        [
            [
                name.removeprefix("ix_cancellations_"),
                *(Spread.of(bench.values(OURS.name, each, without=name)) for each in columns),
            ]
            for name in names
        ],
    )


def _live(db: Connection, count: int) -> dict[str, float]:
    """Take that many jobs to their end; return microseconds a job of each statement, and bytes of the log."""
    server, began_at = db.execute(text("SELECT pg_backend_pid(), pg_current_wal_insert_lsn()")).one()
    spent = dict.fromkeys(STATEMENTS, 0.0)
    for _ in range(count // GROUP):
        used = [scheduled_seconds(server)]
        for step in _steps(db):
            step()
            used.append(scheduled_seconds(server))
        for name, before, after in zip(STATEMENTS, used, used[1:], strict=False):
            spent[name] += (after - before) * 1e6 / count
    written = db.execute(
        text("SELECT pg_current_wal_insert_lsn() - CAST(:at AS pg_lsn)"), {"at": began_at}
    ).scalar_one()
    return {**spent, "in all": sum(spent.values()), "wal": float(written) / count}


def _steps(db: Connection) -> list[Callable[[], object]]:
    jobs = [_job(n) for n in range(GROUP)]
    shares = {f"shop-{n}": GROUP // CONNECTIONS for n in range(CONNECTIONS)}
    claimed: list[AttemptClaim] = []

    def claim() -> None:
        claimed.extend(
            each for of_one in transitions.claim_next(db, shares, "bench", 60.0).values() for each in of_one
        )
        assert GROUP == len(claimed)

    return [
        lambda: transitions.accept(db, jobs),
        claim,
        lambda: results.commit_results(db, [cancelled(each) for each in claimed]),
    ]


def _job(number: int) -> CancelRequest:
    name = uuid.uuid4().hex
    return CancelRequest(
        connection_id=f"shop-{number % CONNECTIONS}",
        order_id=name,
        reference_id=f"R-{name}",
        order_number=f"#{name[:12]}",
        batch="monday.csv-0123456789ab",
    )
