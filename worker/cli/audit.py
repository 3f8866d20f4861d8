"""The command that shows who did what: `audit list`. Knows filters and how an act looks; writes none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from worker.cli.parts import console, ledger, print_json
from worker.cli.times import moment
from worker.ledger import audit
from worker.ledger.database import read_only

if TYPE_CHECKING:
    from worker.ledger.audit import Act

app = typer.Typer(
    help="See what people did, on what, and why.\n\nExample: cancel-worker audit list --actor ann",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:  # else typer makes the one command the group itself
    pass


@app.command(name="list")
def list_(
    actor: Annotated[str | None, typer.Option(help="Of this person or program only.")] = None,
    action: Annotated[audit.Action | None, typer.Option(help="Only acts of this command.")] = None,
    target: Annotated[str | None, typer.Option(help="On this id only: of a cancellation, a connection ...")] = None,
    kind: Annotated[audit.Kind | None, typer.Option(help="On targets of this kind only.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Done since then (UTC).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List acts of people, the newest first.

    Example: cancel-worker audit list --action replay --since 2026-01-31
    """
    with ledger(by_index=True) as opened, read_only(opened) as db:
        acts = audit.find(
            db,
            actor=actor,
            action=action,
            kind=kind,
            target_id=target,
            since=since.replace(tzinfo=UTC) if since else None,
            limit=limit,
        )
    if as_json:
        for act in acts:
            print_json(msgspec.structs.asdict(act))
    else:
        console.print(_table(acts))


def _table(acts: list[Act]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("at", "who", "did", "to", "id", "why", "what changed"):
        table.add_column(column, overflow="fold")
    for act in acts:
        why, target = act.reason or "", act.target_id or "all"
        table.add_row(moment(act.at), act.actor, act.action, act.target_kind, target, why, changes(act))
    return table


def changes(act: Act) -> str:
    """Say what an act changed: `status: pending → withdrawn`; of what was not there before, what it is."""
    before, after = act.before or {}, act.after or {}
    differ = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(
        f"{name}: {_said(before.get(name))} → {_said(after.get(name))}" if act.before else f"{name}: {after[name]}"
        for name in differ
    )


def _said(value: object) -> str:
    return "none" if value is None else str(value)
