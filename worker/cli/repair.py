"""Commands that change what stands in the ledger: replay, withdraw what was not sent, resolve what is not proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from worker.cancellation.lifecycle import why_not_replay, why_not_withdraw
from worker.cancellation.policy import Policy
from worker.cancellation.status import UNSENT, Status, Verdict
from worker.cli.filters import DryRun, batched, by_filter
from worker.cli.parts import Who, Why, acting, acting_for_a_reason, client, console, ledger, overview
from worker.errors import UnknownCancellationError
from worker.ledger import audit, confirmations, filters, queries, transitions
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.filters import EVERYTHING, Filter
from worker.ledger.queries import Cancellation

if TYPE_CHECKING:
    from sqlalchemy import Connection

# What is meant where only a connection or a time is given: neither what succeeded nor what somebody took back.
WORTH_REPLAYING = (Status.EXHAUSTED, Status.EXPIRED, Status.REJECTED)
CHUNK = 500  # rows in one transaction: short enough to stand in nobody's way


@by_filter
def withdraw(
    which: Filter,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of what was not sent yet; or choose by the options.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
    dry_run: DryRun = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Take back cancels that were not sent yet."""
    by = acting(who, reason)
    if ids and not dry_run:
        with closing(client(by.actor)) as producer:
            for record_id in ids:
                producer.withdraw(record_id, reason=by.reason)
                console.print(f"{record_id}  withdrawn")
        return
    chosen = _allowed(_chosen(ids, which, sorted(UNSENT), limit), why_not_withdraw, "withdrawn")
    if dry_run:
        console.print(overview(chosen))
        console.print(f"{len(chosen)} would be withdrawn.")
        return
    withdrawn = _in_parts(chosen, by, Action.WITHDRAW, lambda db, part: transitions.withdraw_all(db, part, Policy()))
    console.print(f"{withdrawn} are withdrawn; {len(chosen) - withdrawn} were sent meanwhile.")


class Seen(StrEnum):
    """What a person saw in the warehouse."""

    CANCELLED = "cancelled"
    NOT_CANCELLED = "not_cancelled"


def resolve(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, as in `list --needs-person`.")],
    seen: Annotated[Seen, typer.Argument(metavar="cancelled|not_cancelled", help="What the warehouse shows.")],
    reason: Annotated[str, typer.Option(help="What you saw, and where; it stays in the timeline.")],
    who: Who = None,
) -> None:
    """Settle what has ended without proof, because you looked into the warehouse."""
    by = acting_for_a_reason(who, reason, ask="say what you saw")
    with (
        ledger() as opened,
        opened.begin() as db,
        audit.recorded(db, by, Action.RESOLVE, Kind.CANCELLATION, [record_id]),
    ):
        confirmations.resolve(db, record_id, Verdict(seen.value), by=by.actor, note=by.reason or "")
    refund = "yes" if seen is Seen.CANCELLED else "no"
    console.print(f"{record_id}  {seen.value}, says {by.actor}. Safe to refund: {refund}.", soft_wrap=True)


@by_filter
def replay(
    which: Filter,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of ended cancellations; or choose by the options.")
    ] = None,
    send_by: Annotated[datetime | None, typer.Option(help="The new send_by (UTC); default: none.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
    dry_run: DryRun = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Run ended cancellations again: each with a new key, at its connection's pace. Needs --reason."""
    by = acting(who, reason) if dry_run else acting_for_a_reason(who, reason)
    found = _chosen(ids, which, WORTH_REPLAYING, limit)
    chosen = _allowed(found, why_not_replay, "replayed")
    if dry_run:
        console.print(overview(chosen))
        console.print(f"{len(chosen)} would be replayed, {len(found) - len(chosen)} would not.")
        return
    until = send_by.replace(tzinfo=UTC) if send_by else None
    replayed = _in_parts(chosen, by, Action.REPLAY, lambda db, part: transitions.replay(db, part, send_by=until))
    console.print(f"{replayed} are pending again, each with a new key; {len(found) - replayed} are not.")
    if ids and replayed < len(ids):
        raise typer.Exit(1)


def _in_parts(
    chosen: Sequence[Cancellation], by: audit.By, action: Action, act: Callable[[Connection, Sequence[str]], set[str]]
) -> int:
    """Act on these, so many in one transaction, and write down who did; return on how many it was done."""
    done = 0
    for part in batched([row.id for row in chosen], CHUNK):
        with (
            ledger() as opened,
            opened.begin() as db,
            audit.recorded(db, by, action, Kind.CANCELLATION, part),
        ):
            done += len(act(db, part))
    return done


def _chosen(ids: list[str] | None, which: Filter, meant: Iterable[Status], limit: int) -> list[Cancellation]:
    """Return what a person names by ids or by a filter; without a status, those of the statuses that are meant."""
    if not ids and which == EVERYTHING:
        raise typer.BadParameter("say which: give ids, or at least one option that chooses, such as --status")
    with ledger(by_index=True) as opened, read_only(opened) as db:
        if ids:
            return [_known(queries.get(db, record_id), record_id) for record_id in ids]
        return filters.find(db, structs.replace(which, status=which.status or tuple(meant)), limit=limit)


def _allowed(
    found: list[Cancellation], why_not: Callable[[Status, Verdict | None], str | None], done: str
) -> list[Cancellation]:
    """Return those of which nothing forbids it; say of the others why."""
    refused = {row.id: why for row in found if (why := why_not(Status(row.status), _verdict(row)))}
    for record_id, why in refused.items():
        console.print(f"{record_id}  not {done}: {why}")
    return [row for row in found if row.id not in refused]


def _verdict(row: Cancellation) -> Verdict | None:
    return Verdict(row.verdict) if row.verdict else None


def _known(row: Cancellation | None, record_id: str) -> Cancellation:
    if row is None:
        raise UnknownCancellationError(f"Nothing in the ledger has the id {record_id}: see `cancel-worker list`.")
    return row
