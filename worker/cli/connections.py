"""Commands about connections. A token comes from a prompt or from standard input, never from the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table

from worker.cli.parts import Who, Why, acting, acting_for_a_reason, console, ledger, recorded
from worker.cli.times import moment
from worker.cli.words import in_few_words
from worker.inputs.headers import MAX_RATE, MIN_RATE
from worker.inputs.identifiers import problem_of_name
from worker.inputs.text import visible
from worker.ledger import binding, connections, freshness, holds, queries
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.vault import TokenVault, of_connection
from worker.settings import load_settings

MAX_ID_LENGTH = 255
TrackstarId = Annotated[
    str | None, typer.Option(help="Its id at Trackstar, where that is not ours: whose crawls are looked at.")
]
Name = Annotated[str | None, typer.Option(help="For people; shown beside its id. An empty one is none.")]
Owner = Annotated[str | None, typer.Option(help="Who answers for it, for people; shown beside its id.")]
Integration = Annotated[str | None, typer.Option(help="The warehouse system's name.")]
WritesPerSecond = Annotated[
    float | None, typer.Option(min=MIN_RATE, max=MAX_RATE, help="Where its limit is not the usual.")
]

app = typer.Typer(
    help="Add, list, change, hold, rotate connections: one customer's warehouse, one access token each.\n\n"
    "Example: cancel-worker connections list",
    no_args_is_help=True,
)


@app.command()
def add(
    connection_id: Annotated[str, typer.Argument(metavar="ID")],
    name: Name = None,
    owner: Owner = None,
    integration: Integration = None,
    writes_per_second: WritesPerSecond = None,
    trackstar_id: TrackstarId = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Add a connection, or give a known one a new token. Jobs that waited for it go on.

    Example: cancel-worker connections add shop-1 --name "Shop One" --owner ann
    """
    if problem := problem_of_name(connection_id):
        raise typer.BadParameter(f"{connection_id!r} {problem}: no job could name it", param_hint="ID")
    vault = TokenVault(load_settings().keys)
    vault.encrypt("")  # says how to make a key before anybody types a secret
    _check_trackstar_id(trackstar_id)
    _check_texts(name, owner, integration)
    token = _read_token(connection_id)
    with recorded(acting(who, reason), Action.ADD, Kind.CONNECTION, [connection_id]) as db:
        connections.add(
            db,
            connection_id,
            binding.encrypt(db, vault, token, of_connection(connection_id)),
            name=name,
            owner=owner,
            integration_name=integration,
            writes_per_second=writes_per_second,
        )
        if trackstar_id is not None:
            freshness.set_trackstar_id(db, connection_id, trackstar_id)
    console.print(f"Connection {connection_id} is ready.")


@app.command(name="set")
def set_(
    connection_id: Annotated[str, typer.Argument(metavar="ID")],
    name: Name = None,
    owner: Owner = None,
    integration: Integration = None,
    writes_per_second: WritesPerSecond = None,
    trackstar_id: TrackstarId = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Change what is stated of a known connection; its token and its hold stay.

    Example: cancel-worker connections set shop-1 --writes-per-second 5
    """
    if all(each is None for each in (name, owner, integration, writes_per_second, trackstar_id)):
        raise typer.BadParameter("say what: --name, --owner, --integration, --writes-per-second or --trackstar-id")
    _check_trackstar_id(trackstar_id)
    _check_texts(name, owner, integration)
    with recorded(acting(who, reason), Action.SET, Kind.CONNECTION, [connection_id]) as db:
        connections.known(db, connection_id)
        connections.change(
            db,
            connection_id,
            name=name,
            owner=owner,
            integration_name=integration,
            writes_per_second=writes_per_second,
        )
        if trackstar_id is not None:
            freshness.set_trackstar_id(db, connection_id, trackstar_id)
    console.print(f"Connection {connection_id} is changed.")


@app.command(name="list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also each one that nobody has added.")] = False,
) -> None:
    """List connections with their holds: those that were added, and the first of those that jobs came for.

    Example: cancel-worker connections list --all
    """
    with ledger() as opened, read_only(opened) as db:
        rows = connections.list_all(db, unknown=None if everything else connections.SHOWN_UNKNOWN)
        more = 0 if everything else connections.count_unknown(db) - connections.SHOWN_UNKNOWN
        crawls, now = freshness.crawls_of_all(db), queries.now(db)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("id", "name", "owner", "integration", "held", "since", "token", "not ended", "copy of its orders"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.id,
            row.name or "",
            row.owner or "",
            row.integration_name or "",
            (row.hold_reason or "") + (f" until {moment(row.held_until)}" if row.held_until else ""),
            moment(row.held_at),
            "yes" if row.has_token else "no",
            str(row.waiting),
            in_few_words(crawls.get(row.id), now),
        )
    console.print(table)
    if more > 0:
        console.print(f"and {more} more unknown connections: see them with --all.", highlight=False)


@app.command()
def rotate(connection_id: Annotated[str, typer.Argument(metavar="ID")], reason: Why = None, who: Who = None) -> None:
    """Give a known connection a new token; every worker uses it from its next claim on.

    Example: cancel-worker connections rotate shop-1
    """
    vault = TokenVault(load_settings().keys)
    vault.encrypt("")  # says how to make a key before anybody types a secret
    with ledger() as opened, read_only(opened) as db:
        connections.known(db, connection_id)
    token = _read_token(connection_id)
    with recorded(acting(who, reason), Action.ROTATE, Kind.CONNECTION, [connection_id]) as db:
        connections.add(db, connection_id, binding.encrypt(db, vault, token, of_connection(connection_id)))
    console.print(f"Connection {connection_id} has a new token.")


@app.command()
def hold(connection_id: Annotated[str, typer.Argument(metavar="ID")], reason: Why = None, who: Who = None) -> None:
    """Set a connection aside: its jobs wait, and expire at their send_by, until it is resumed.

    Example: cancel-worker connections hold shop-1 --reason "stock-taking"
    """
    with recorded(acting(who, reason), Action.HOLD, Kind.CONNECTION, [connection_id]) as db:
        connections.known(db, connection_id)
        holds.hold_by_operator(db, connection_id)
    console.print(f"Connection {connection_id} is held.")


@app.command()
def resume(connection_id: Annotated[str, typer.Argument(metavar="ID")], reason: Why = None, who: Who = None) -> None:
    """End any hold of a connection; its jobs go out at its pace. Needs --reason.

    Example: cancel-worker connections resume shop-1 --reason "it is over"
    """
    by = acting_for_a_reason(who, reason)
    with recorded(by, Action.RESUME, Kind.CONNECTION, [connection_id]) as db:
        row = connections.known(db, connection_id)
        if not row.has_token:
            raise ValueError(
                f"Connection {connection_id} has no token: give it one with `connections add {connection_id}`."
            )
        resumed = holds.resume(db, [connection_id], holds.ALL)
    said = "goes on" if resumed else "was not held"
    console.print(f"Connection {connection_id} {said}.")


@app.command()
def remove(
    connection_id: Annotated[str, typer.Argument(metavar="ID")],
    force: Annotated[
        bool, typer.Option("--force", help="Also while jobs wait; they wait on until it is added.")
    ] = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Forget a connection's token. Its cancellations stay: they are the record of what happened. Needs --reason.

    Example: cancel-worker connections remove shop-1 --reason "they have left"
    """
    by = acting_for_a_reason(who, reason)
    with recorded(by, Action.REMOVE, Kind.CONNECTION, [connection_id]) as db:
        connections.known(db, connection_id)
        waiting = connections.count_waiting(db, connection_id)
        if waiting and not force:
            raise ValueError(
                f"{waiting} cancellations of {connection_id} have not ended: let them end, withdraw them, or say "
                "--force."
            )
        connections.remove(db, connection_id)
    console.print(f"Connection {connection_id} is removed.")


def _check_trackstar_id(trackstar_id: str | None) -> None:
    if trackstar_id is not None and not (0 < len(trackstar_id) <= MAX_ID_LENGTH and trackstar_id.strip()):
        raise typer.BadParameter(
            f"an id of Trackstar has 1 to {MAX_ID_LENGTH} characters", param_hint="--trackstar-id"
        )


def _check_texts(*texts: str | None) -> None:
    if any(text is not None and len(text) > MAX_ID_LENGTH for text in texts):
        raise typer.BadParameter(f"a name, an owner and a warehouse system have {MAX_ID_LENGTH} characters at most")


def _read_token(connection_id: str) -> str:
    if sys.stdin.isatty():
        token = str(typer.prompt(f"Access token of {visible(connection_id)}", hide_input=True))
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise typer.BadParameter("no access token came: type it at the prompt or pipe it into standard input")
    if not token.isascii() or not token.isprintable():
        raise typer.BadParameter("the access token has characters that no HTTP header can carry")
    return token
