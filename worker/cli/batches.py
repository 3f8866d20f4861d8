"""Commands about batches: what was enqueued together is followed, and stopped, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from worker.cancellation.lifecycle import why_not_withdraw
from worker.cancellation.policy import Policy
from worker.cancellation.status import UNSENT
from worker.cli.chosen import allowed, in_parts
from worker.cli.filters import DryRun  # noqa: TC001 - the command line reads it
from worker.cli.parts import Who, Why, acting, console, ledger
from worker.cli.times import moment
from worker.errors import UnknownCancellationError
from worker.ledger import batches, filters, transitions
from worker.ledger.audit import Action
from worker.ledger.database import read_only
from worker.ledger.filters import Filter

if TYPE_CHECKING:
    from worker.ledger.batches import Batch, Outcomes
    from worker.ledger.record import Cancellation

app = typer.Typer(
    help="See what was enqueued together, and stop it.\n\nExample: cancel-worker batches list", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `batches list` has it.")]
AT_ONCE = 10_000  # cancellations, then it is looked again


def outcomes_table(outcomes: Outcomes) -> Table:
    """Return a table of how many stand how."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("status", "safe to refund", "cancellations"):
        table.add_column(name)
    for (status, refund), count in sorted(outcomes.items()):
        table.add_row(status, refund, str(count))
    return table


@app.command(name="list")
def list_(limit: Annotated[int, typer.Option(min=1, max=1_000)] = 50) -> None:
    """List batches, the newest first.

    Example: cancel-worker batches list --limit 10
    """
    with ledger(by_index=True) as opened, read_only(opened) as db:
        found = batches.find(db, limit)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("batch", "received", "cancellations", "refund: yes", "no", "not yet"):
        table.add_column(name, overflow="fold")
    for batch in found:
        answers = [
            sum(count for (_, refund), count in batch.outcomes.items() if refund == word)
            for word in ("yes", "no", "not yet")
        ]
        table.add_row(batch.name, moment(batch.received_at), str(sum(answers)), *map(str, answers))
    console.print(table)


@app.command()
def show(name: Name) -> None:
    """Say how the cancellations of a batch stand.

    Example: cancel-worker batches show monday.csv-1f2e3d4c5b6a
    """
    batch = _known(name)
    console.print(f"Batch {batch.name}, received from {moment(batch.received_at)} on", style="bold")
    console.print(outcomes_table(batch.outcomes))


@app.command()
def stop(name: Name, dry_run: DryRun = False, reason: Why = None, who: Who = None) -> None:
    """Take back what was not sent yet of a batch.

    Example: cancel-worker batches stop monday.csv-1f2e3d4c --reason "wrong file"
    """
    by, stopped = acting(who, reason), 0
    _known(name)
    while waiting := _unsent(name):
        if dry_run:
            console.print(f"{len(waiting)} would be withdrawn.")
            return
        done = in_parts(waiting, by, Action.WITHDRAW, lambda db, part: transitions.withdraw_all(db, part, Policy()))
        stopped += done
        if not done:
            break
    console.print(f"{stopped} are withdrawn. What is still on its way into the ledger is not: then stop it again.")


def _unsent(name: str) -> list[Cancellation]:
    which = Filter(batch=name, status=tuple(sorted(UNSENT)), undoubted=True)
    with ledger(by_index=True) as opened, read_only(opened) as db:
        return allowed(filters.find(db, which, limit=AT_ONCE), why_not_withdraw, "withdrawn", quiet=True)


def _known(name: str) -> Batch:
    with ledger(by_index=True) as opened, read_only(opened) as db:
        found = batches.get(db, name)
    if found is None:
        raise UnknownCancellationError(f"Nothing in the ledger is in batch {name!r}: see `batches list`.")
    return found
