"""The command that changes how cancels are sent that wait for their turn."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from msgspec import UNSET, UnsetType

from worker.cancellation.lifecycle import why_not_change
from worker.cancellation.request import Priority  # noqa: TC001 - the command line reads it
from worker.cancellation.status import UNSENT
from worker.cli.chosen import allowed, chosen, in_parts
from worker.cli.filters import DryRun, by_filter
from worker.cli.parts import Who, Why, acting, console, overview
from worker.inputs.instants import read_day_or_instant
from worker.ledger.audit import Action
from worker.ledger.changes import Change
from worker.ledger.changes import change as change_them
from worker.ledger.filters import Filter  # noqa: TC001 - the command line reads it

NO_TIME = "none"


@by_filter
def change(
    which: Filter,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of what waits; or choose by the options.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="The new priority.")] = None,
    send_by: Annotated[
        str | None,
        typer.Option(metavar="TIME|none", help="After it they are not sent; none: at any time."),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Try at once what waits for a retry.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
    dry_run: DryRun = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Change how cancels are sent that wait for their turn; each takes its new place within a second.

    Example: cancel-worker change --order-number '#1001' --priority urgent --now
    """
    wish = Change(priority=priority, send_by=_send_by(send_by), now=now)
    if wish == Change():
        raise typer.BadParameter("say what: --priority, --send-by or --now")
    by = acting(who, reason)
    found = chosen(ids, which, sorted(UNSENT), limit)
    may = allowed(found, why_not_change, "changed")
    if dry_run:
        console.print(overview(may))
        console.print(f"{len(may)} would be changed, {len(found) - len(may)} would not.")
        return
    done = in_parts(may, by, Action.CHANGE, lambda db, part: change_them(db, part, wish))
    console.print(f"{done} are changed; {len(found) - done} are not.")
    if ids and done < len(found):
        raise typer.Exit(1)


def _send_by(text: str | None) -> datetime | UnsetType | None:
    if text is None:
        return UNSET
    if text == NO_TIME:
        return None
    if (found := read_day_or_instant(text)) is None:
        raise typer.BadParameter(f"{text!r} is no instant: write 2026-01-31T09:30+01:00, or none")
    return found
