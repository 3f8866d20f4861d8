"""Commands that change what stands in the ledger: replay, withdraw what was not sent, resolve what is not proven."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from worker.cancellation.lifecycle import why_not_replay, why_not_withdraw
from worker.cancellation.policy import Policy
from worker.cancellation.status import UNPROVEN, UNSENT, Status, Verdict
from worker.cli.chosen import allowed, chosen, in_parts, one_way
from worker.cli.filters import DryRun, by_filter
from worker.cli.parts import Who, Why, acting, acting_for_a_reason, client, console, overview, recorded
from worker.errors import TooLateError, UnknownCancellationError
from worker.ledger import confirmations, transitions
from worker.ledger.audit import Action, By, Kind
from worker.ledger.filters import Filter  # noqa: TC001 - the command line reads it

if TYPE_CHECKING:
    from worker.ledger.record import Cancellation

# What is meant where only a connection or a time is given: neither what succeeded nor what somebody took back.
WORTH_REPLAYING = (Status.EXHAUSTED, Status.EXPIRED, Status.REJECTED)


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
    """Take back cancels that were not sent yet.

    Example: cancel-worker withdraw --batch monday.csv-1f2e3d4c5b6a --dry-run
    """
    by = acting(who, reason)
    one_way(ids, which)
    if ids and not dry_run:
        _withdraw_each(ids, by)
        return
    found = allowed(_meant(ids, which, limit), why_not_withdraw, "withdrawn")
    if dry_run:
        console.print(overview(found))
        console.print(f"{len(found)} would be withdrawn.")
        return
    withdrawn = in_parts(found, by, Action.WITHDRAW, lambda db, part: transitions.withdraw_all(db, part, Policy()))
    console.print(f"{withdrawn} are withdrawn; {len(found) - withdrawn} were sent meanwhile.")


def _meant(ids: list[str] | None, which: Filter, limit: int) -> list[Cancellation]:
    """Return what is to be withdrawn; what is in doubt is there to be named, and takes no room of what is not."""
    meant = sorted(UNSENT)
    if ids:
        return chosen(ids, which, meant, limit)
    in_doubt = structs.replace(which, verdict=which.verdict or UNPROVEN)
    return [
        *chosen(None, structs.replace(which, undoubted=True), meant, limit),
        *chosen(None, in_doubt, meant, limit, quiet=True),
    ]


def _withdraw_each(ids: list[str], by: By) -> None:
    """Withdraw each of these that can be; exit 1 where one of several cannot, when all were tried."""
    refused = False
    with closing(client(by.actor)) as producer:
        for record_id in dict.fromkeys(ids):
            try:
                producer.withdraw(record_id, reason=by.reason)
            except (TooLateError, UnknownCancellationError) as error:
                if len(ids) == 1:
                    raise
                refused = True
                console.print(str(error), soft_wrap=True)
            else:
                console.print(f"{record_id}  withdrawn")
    if refused:
        raise typer.Exit(1)


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
    """Settle what has ended without proof, because you looked into the warehouse.

    Example: cancel-worker resolve 6f1d0c1e-94a5-5e0a-8a0e-3b1f5f6d2c47 cancelled --reason "seen there"
    """
    by = acting_for_a_reason(who, reason, ask="say what you saw")
    with recorded(by, Action.RESOLVE, Kind.CANCELLATION, [record_id]) as db:
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
    """Run ended cancellations again: each with a new key, at its connection's pace. Needs --reason.

    Example: cancel-worker replay --status exhausted -c shop-1 --reason recovered
    """
    by = acting(who, reason) if dry_run else acting_for_a_reason(who, reason)
    found = chosen(ids, which, WORTH_REPLAYING, limit)
    may = allowed(found, why_not_replay, "replayed")
    if dry_run:
        console.print(overview(may))
        console.print(f"{len(may)} would be replayed, {len(found) - len(may)} would not.")
        return
    until = send_by.replace(tzinfo=UTC) if send_by else None
    replayed = in_parts(may, by, Action.REPLAY, lambda db, part: transitions.replay(db, part, send_by=until))
    console.print(f"{replayed} are pending again, each with a new key; {len(found) - replayed} are not.")
    if ids and replayed < len(found):
        raise typer.Exit(1)
