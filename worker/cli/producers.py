"""Commands about producers: who has an inbox of its own, for which connections, how urgent, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from worker.cli.parts import Who, Why, acting, acting_for_a_reason, console, ledger, print_json, recorded
from worker.cli.times import moment
from worker.inputs.identifiers import problem_of_name
from worker.ledger import producers
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.streams import inbox_of

if TYPE_CHECKING:
    from worker.ledger.producers import ProducerRow

ALL, NO_LIMIT = "all", 0.0

app = typer.Typer(
    help="Give each producer of jobs a name, an inbox of its own, and its rights.\n\n"
    "Example: cancel-worker producers list",
    no_args_is_help=True,
)
_WHOSE = "Whose orders it may cancel: ids with commas between, or `all`."
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its inbox is cancellations:inbox:NAME.")]
PerSecond = Annotated[
    float | None, typer.Option(min=0, help="Jobs that are read from its inbox; 0: as they come.", metavar="N")
]
Urgent = Annotated[bool | None, typer.Option("--urgent/--not-urgent", help="Whether it may ask for `urgent`.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def add(
    name: Name,
    connections: Annotated[str, typer.Option(help=_WHOSE, metavar="IDS")] = ALL,
    urgent: Annotated[bool, typer.Option("--urgent", help="It may ask for priority `urgent`.")] = False,
    per_second: PerSecond = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Add a producer; workers read its inbox within seconds. Shows the line that Redis' ACL needs for it.

    Example: cancel-worker producers add oms-a --connections shop-1,shop-2
    """
    by = acting(who, reason)
    named = _read_connections(connections)
    with recorded(by, Action.ADD, Kind.PRODUCER, [name]) as db:
        limit = per_second or None
        producers.add(db, name, by=by.actor, connections=named, urgent=urgent, per_second=limit)
    console.print(f"Producer {name} is added. Its user in Redis needs this line of an ACL file (Redis 7 or newer):")
    console.print(acl_line(name), soft_wrap=True)


def acl_line(name: str) -> str:
    """Return what Redis must allow the user of a producer: to add to its own inbox, and nothing else."""
    # All of CLIENT but what touches others: Redis 7.0 knows no SETINFO to name, and refuses a line that names it.
    others = "kill list pause unpause unblock no-evict"
    rights = "+xadd +wait +role +ping +select +client " + " ".join(f"-client|{each}" for each in others.split())
    return (
        f"user producer-{name} on #SHA256-OF-ITS-PASSWORD resetchannels resetkeys %W~{inbox_of(name)} -@all {rights}"
    )


@app.command()
def change(
    name: Name,
    connections: Annotated[str | None, typer.Option(help=_WHOSE, metavar="IDS")] = None,
    urgent: Urgent = None,
    per_second: PerSecond = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Change what a producer may; workers follow within seconds, also for what waits on its inbox.

    Example: cancel-worker producers change oms-a --connections all --per-second 0
    """
    rights: dict[str, Any] = {}
    if connections is not None:
        rights["connections"] = _read_connections(connections)
    if urgent is not None:
        rights["urgent"] = urgent
    if per_second is not None:
        rights["per_second"] = None if per_second == NO_LIMIT else per_second
    if not rights:
        raise typer.BadParameter("say what: --connections, --urgent, --not-urgent or --per-second")
    with recorded(acting(who, reason), Action.CHANGE, Kind.PRODUCER, [name]) as db:
        producers.change(db, name, **rights)
    console.print(f"Producer {name} is changed.")


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List producers, and what each may.

    Example: cancel-worker producers list --json
    """
    with ledger() as opened, read_only(opened) as db:
        found = producers.list_all(db)
    if as_json:
        for each in found:
            print_json(msgspec.to_builtins(each))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "connections", "urgent", "per second", "added", "by"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(row.name, *_facts(row).values())
    console.print(table)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Say what one producer may, and which inbox is its own.

    Example: cancel-worker producers show oms-a
    """
    with ledger() as opened, read_only(opened) as db:
        row = producers.known(db, name)
    if as_json:
        print_json({**msgspec.to_builtins(row), "inbox": inbox_of(name)})
        return
    console.print(f"Producer {name}: {inbox_of(name)}", style="bold", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for fact, value in _facts(row).items():
        table.add_row(fact, value)
    console.print(table)
    console.print(acl_line(name), soft_wrap=True)


def _facts(row: ProducerRow) -> dict[str, str]:
    return {
        "connections": ALL if row.connections is None else ", ".join(row.connections),
        "urgent": "yes" if row.urgent else "no",
        "per second": "as they come" if row.per_second is None else f"{row.per_second:g}",
        "added": moment(row.created_at),
        "by": row.created_by,
    }


@app.command()
def remove(name: Name, reason: Why = None, who: Who = None) -> None:
    """Forget a producer: what is on its inbox, and what still comes there, becomes dead letters. Needs --reason.

    Example: cancel-worker producers remove oms-a --reason "it was shut down"
    """
    by = acting_for_a_reason(who, reason)
    with recorded(by, Action.REMOVE, Kind.PRODUCER, [name]) as db:
        producers.remove(db, name)
    console.print(f"Producer {name} is removed. Remove its user from Redis' ACL as well.")


def _read_connections(text: str) -> list[str] | None:
    """Read ids with commas between, or `all`. They need not be known so far: jobs wait for a connection."""
    if text == ALL:
        return None
    names = [each.strip() for each in text.split(",")]
    for each in names:
        if problem := problem_of_name(each):
            raise typer.BadParameter(f"{each!r} {problem}", param_hint="--connections")
    return names
