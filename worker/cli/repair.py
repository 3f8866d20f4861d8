"""Commands that change what stands in the ledger: replay, withdraw what was not sent, resolve what is not proven."""

from __future__ import annotations

import getpass
import socket
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from worker.cancellation.lifecycle import why_not_replay
from worker.cancellation.status import Status, Verdict
from worker.cli.parts import client, console, ledger, overview
from worker.environment import from_environment
from worker.errors import UnknownCancellationError
from worker.ledger import confirmations, queries, transitions
from worker.ledger.database import read_only
from worker.ledger.queries import Cancellation

# What is meant where only a connection or a time is given: neither what succeeded nor what somebody took back.
WORTH_REPLAYING = (Status.EXHAUSTED, Status.EXPIRED, Status.REJECTED)
CHUNK = 500  # rows in one transaction: short enough to stand in nobody's way


def withdraw(ids: Annotated[list[str], typer.Argument(help="Ids of cancellations that were not sent yet.")]) -> None:
    """Take back cancels that were not sent yet."""
    with closing(client()) as producer:
        for record_id in ids:
            producer.withdraw(record_id)
            console.print(f"{record_id}  withdrawn")


class Seen(StrEnum):
    """What a person saw in the warehouse."""

    CANCELLED = "cancelled"
    NOT_CANCELLED = "not_cancelled"


def resolve(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, as in `list --needs-person`.")],
    seen: Annotated[Seen, typer.Argument(metavar="cancelled|not_cancelled", help="What the warehouse shows.")],
    reason: Annotated[str, typer.Option(help="What you saw, and where; it stays in the timeline.")],
    who: Annotated[str | None, typer.Option("--as", help="Your name; default: CANCEL_ACTOR, else user@host.")] = None,
) -> None:
    """Settle what has ended without proof, because you looked into the warehouse."""
    if not reason.strip():
        raise typer.BadParameter("say what you saw", param_hint="--reason")
    by = (who or from_environment("CANCEL_ACTOR") or "").strip() or f"{getpass.getuser()}@{socket.gethostname()}"
    with ledger() as opened, opened.begin() as db:
        confirmations.resolve(db, record_id, Verdict(seen.value), by=by, note=reason.strip())
    refund = "yes" if seen is Seen.CANCELLED else "no"
    console.print(f"{record_id}  {seen.value}, says {by}. Safe to refund: {refund}.", soft_wrap=True)


def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of ended cancellations; or choose by the options.")
    ] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Ended so; may be given more than once.")] = None,
    connection: Annotated[str | None, typer.Option("--connection", "-c", help="Of this connection only.")] = None,
    reason: Annotated[str | None, typer.Option(help="With this outcome reason only, as in `list`.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Received since then (UTC).")] = None,
    send_by: Annotated[datetime | None, typer.Option(help="The new send_by (UTC); default: none.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be replayed, and change nothing.")
    ] = False,
) -> None:
    """Run ended cancellations again: each with a new key, at its connection's pace."""
    if not ids and not (status or connection or reason or since):
        raise typer.BadParameter("say which: give ids, or at least one of --status, --connection, --reason, --since")
    with ledger() as opened, read_only(opened) as db:
        found = (
            [_known(queries.get(db, record_id), record_id) for record_id in ids]
            if ids
            else queries.find(
                db,
                status=status or WORTH_REPLAYING,
                connection_id=connection,
                reason=reason,
                since=since.replace(tzinfo=UTC) if since else None,
                limit=limit,
            )
        )
    refused = {row.id: why for row in found if (why := _why_not(row))}
    chosen = [row for row in found if row.id not in refused]
    for row_id, why in refused.items():
        console.print(f"{row_id}  not replayed: {why}")
    if dry_run:
        console.print(overview(chosen))
        console.print(f"{len(chosen)} would be replayed, {len(refused)} would not.")
        return
    replayed = _replay([row.id for row in chosen], send_by.replace(tzinfo=UTC) if send_by else None)
    console.print(f"{replayed} are pending again, each with a new key; {len(found) - replayed} are not.")
    if ids and replayed < len(ids):
        raise typer.Exit(1)


def _replay(ids: list[str], send_by: datetime | None) -> int:
    replayed = 0
    for start in range(0, len(ids), CHUNK):
        with ledger() as opened, opened.begin() as db:
            replayed += len(transitions.replay(db, ids[start : start + CHUNK], send_by=send_by))
    return replayed


def _known(row: Cancellation | None, record_id: str) -> Cancellation:
    if row is None:
        raise UnknownCancellationError(f"Nothing in the ledger has the id {record_id}: see `cancel-worker list`.")
    return row


def _why_not(row: Cancellation) -> str | None:
    return why_not_replay(Status(row.status), Verdict(row.verdict) if row.verdict else None)
