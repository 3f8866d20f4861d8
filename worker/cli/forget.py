"""Commands that forget: what is older than it is kept, and what is personal of one order."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.filters import DryRun  # noqa: TC001 - the command line reads it
from worker.cli.parts import Who, Why, acting, acting_for_a_reason, console, ledger
from worker.cli.progress import progress
from worker.errors import UnknownCancellationError
from worker.ledger import audit, filters, queries, redaction, retention
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.filters import Filter
from worker.settings import load_settings
from worker.streams import connect_redis, forget_events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

    from worker.cli.progress import Progress
    from worker.ledger.record import Cancellation


MOST = 1_000  # cancellations of one order
CHUNK = 50  # rows in one transaction, with a row of the audit
# After it, or that many times as long as it took: whoever cancels beside it goes first. `make bench PARTS=people`
# showed that more rows at once, or shorter rests, make the slowest cancels twice as slow.
REST_SECONDS, RESTS = 0.25, 9


def prune(dry_run: DryRun = False, reason: Why = None, who: Who = None) -> None:
    """Delete what is older than RETENTION_DAYS, SNAPSHOT_DAYS and DEAD_LETTER_DAYS say. The worker does it too.

    Example: cancel-worker prune --dry-run
    """
    kept, by = load_settings().retention, acting(who, reason)
    others = {
        "events of no cancellation": (kept.facts, retention.prune_events, retention.count_events),
        "documents": (kept.documents, retention.prune_documents, retention.count_documents),
        "tries of webhooks": (kept.facts, retention.prune_tries, retention.count_tries),
        "orders whose refund was told": (kept.facts, retention.prune_refunds, retention.count_refunds),
        "dead letters": (kept.dead_letters, retention.prune_dead_letters, retention.count_dead_letters),
    }
    with ledger(by_index=True) as opened:
        if dry_run:
            with read_only(opened) as db:
                old = {"cancellations": retention.count_facts(db, kept.facts) if kept.facts else 0}
                old |= {what: count(db, seconds) if seconds else 0 for what, (seconds, _, count) in others.items()}
            console.print(f"{_said(old)} would be deleted; with a cancellation its attempts, events and document.")
            return
        # Without a total: to count what is old is to read all of it.
        with progress("rows deleted") as shown:
            done = {"cancellations": _prune_facts(opened, by, kept.facts, shown)}
            done |= {what: _prune(opened, by, what, seconds, one, shown) for what, (seconds, one, _) in others.items()}
    console.print(f"{_said(done)} are deleted.")


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _prune_facts(opened: Engine, by: audit.By, seconds: float, shown: Progress) -> int:
    done, after, more = 0, None, seconds > 0
    while more:
        began = time.monotonic()
        with opened.begin() as db:
            pruned = retention.prune_facts(db, seconds, after, CHUNK)
            _write(db, by, "cancellations", pruned.count)
        shown.advance(pruned.count)
        done, after, more = done + pruned.count, pruned.after, pruned.after is not None
        if more:
            _rest(began)
    return done


def _prune(
    opened: Engine,
    by: audit.By,
    what: str,
    seconds: float,
    one: Callable[[Connection, float, int], int],
    shown: Progress,
) -> int:
    done, more = 0, seconds > 0
    while more:
        began = time.monotonic()
        with opened.begin() as db:
            gone = one(db, seconds, CHUNK)
            _write(db, by, what, gone)
        shown.advance(gone)
        done, more = done + gone, gone == CHUNK
        if more:
            _rest(began)
    return done


def _rest(began: float) -> None:
    """Rest after a transaction that began at this monotonic time."""
    time.sleep(max(REST_SECONDS, RESTS * (time.monotonic() - began)))


def _write(db: Connection, by: audit.By, what: str, count: int) -> None:
    if count:
        audit.write(db, by, Action.PRUNE, Kind.LEDGER, after={what: count})


def redact(
    order: Annotated[str, typer.Argument(metavar="ORDER", help="An order id, a number of it, or a record id.")],
    connection: Annotated[str | None, typer.Option("--connection", "-c", help="Of this connection only.")] = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Erase what is personal of an order's cancellations. Status, verdict and evidence stay. Needs --reason.

    Example: cancel-worker redact '#1001' --reason "asked for by the customer"
    """
    by = acting_for_a_reason(who, reason)
    with ledger(by_index=True) as opened:
        with read_only(opened) as db:
            rows = filters.find(db, Filter(name=order, connection_id=connection), limit=MOST + 1) or _of_id(db, order)
        if len(rows) > MOST:
            raise typer.BadParameter(f"more than {MOST:,} cancellations have it: say of which --connection")
        with opened.begin() as db:
            done = redaction.redact(db, [row.id for row in rows])
            letters = redaction.redact_dead_letters(db, _names(order, rows), connection)
            for record_id in sorted(done.ids):
                audit.write(db, by, Action.REDACT, Kind.CANCELLATION, record_id)
            for number in letters:
                audit.write(db, by, Action.REDACT, Kind.DEAD_LETTER, str(number))
    if not done.ids and not letters:
        raise UnknownCancellationError(f"Nothing in the ledger has the id, the order id or the number {order!r}.")
    for record_id in sorted(done.ids):
        again = "  it is not settled: what Trackstar shows of it next is kept; redact it again then"
        console.print(f"{record_id}  redacted{again if record_id in done.undecided else ''}", soft_wrap=True)
    for number in letters:
        console.print(f"dead letter {number}  redacted")
    if done.told:  # last: what the ledger holds is erased, also where Redis is away
        with closing(connect_redis(load_settings().redis_url, socket_timeout=5)) as redis:
            forget_events(redis, done.told)


def _of_id(db: Connection, record_id: str) -> list[Cancellation]:
    found = queries.get(db, record_id)
    return [found] if found else []


def _names(order: str, rows: Sequence[Cancellation]) -> frozenset[str]:
    """Return how messages may name this order: as it was typed, and by each id and number that is known of it."""
    known = {name for row in rows for name in (row.order_id, row.reference_id, row.order_number) if name}
    bare = {name.removeprefix("#") for name in {order, *known}}
    return frozenset({order, *known, *bare, *(f"#{name}" for name in bare)})
