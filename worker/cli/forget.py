"""Commands that forget: what is older than it is kept, and what is personal of one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.filters import DryRun  # noqa: TC001 - the command line reads it
from worker.cli.parts import Who, Why, acting, acting_for_a_reason, console, ledger
from worker.errors import UnknownCancellationError
from worker.ledger import audit, filters, retention
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.filters import Filter
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine


MOST = 1_000  # cancellations of one order
CHUNK = 1_000  # rows in one transaction, each with a row of the audit


def prune(dry_run: DryRun = False, reason: Why = None, who: Who = None) -> None:
    """Delete what is older than RETENTION_DAYS, SNAPSHOT_DAYS and DEAD_LETTER_DAYS say. The worker does it too.

    Example: cancel-worker prune --dry-run
    """
    kept, by = load_settings().retention, acting(who, reason)
    with ledger(by_index=True) as opened:
        if dry_run:
            with read_only(opened) as db:
                found = retention.count_facts(db, kept.facts) if kept.facts else 0
            console.print(f"{found} cancellations would be deleted, with their attempts, events and documents.")
            return
        done = {
            "cancellations": _prune_facts(opened, by, kept.facts),
            "documents": _prune(opened, by, "documents", kept.documents, retention.prune_documents),
            "dead letters": _prune(opened, by, "dead letters", kept.dead_letters, retention.prune_dead_letters),
        }
    console.print(", ".join(f"{count} {what}" for what, count in done.items()) + " are deleted.")


def _prune_facts(opened: Engine, by: audit.By, seconds: float) -> int:
    done, after, more = 0, None, seconds > 0
    while more:
        with opened.begin() as db:
            pruned = retention.prune_facts(db, seconds, after, CHUNK)
            _write(db, by, "cancellations", pruned.count)
        done, after, more = done + pruned.count, pruned.after, pruned.after is not None
    return done


def _prune(
    opened: Engine, by: audit.By, what: str, seconds: float, one: Callable[[Connection, float, int], int]
) -> int:
    done, more = 0, seconds > 0
    while more:
        with opened.begin() as db:
            gone = one(db, seconds, CHUNK)
            _write(db, by, what, gone)
        done, more = done + gone, gone == CHUNK
    return done


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
            ids = [row.id for row in filters.find(db, Filter(name=order, connection_id=connection), limit=MOST)]
        with opened.begin() as db:
            found = sorted(retention.redact(db, ids or [order]))
            for record_id in found:
                audit.write(db, by, Action.REDACT, Kind.CANCELLATION, record_id)
    if not found:
        raise UnknownCancellationError(f"Nothing in the ledger has the id, the order id or the number {order!r}.")
    for record_id in found:
        console.print(f"{record_id}  redacted")
