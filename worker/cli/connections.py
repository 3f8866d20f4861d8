"""Commands about connections. A token comes from a prompt or from standard input, never from the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table

from worker.cli.parts import console, ledger, moment
from worker.ledger import connections
from worker.ledger.credentials import TokenVault
from worker.ledger.engine import reading
from worker.settings import load_settings

app = typer.Typer(
    help="Add and list connections: one customer's warehouse, one access token each.", no_args_is_help=True
)


@app.command()
def add(
    connection_id: Annotated[str, typer.Argument(metavar="ID")],
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    integration: Annotated[str | None, typer.Option(help="The warehouse system's name.")] = None,
    writes_per_second: Annotated[float | None, typer.Option(min=0.1, help="Where its limit is not the usual.")] = None,
) -> None:
    """Add a connection, or give a known one a new token. Jobs that waited for it go on."""
    vault = TokenVault(load_settings().keys)
    vault.seal("")  # says how to make a key before anybody types a secret
    token = _read_token(connection_id)
    with ledger().begin() as opened:
        connections.add(
            opened,
            connection_id,
            vault.seal(token),
            name=name,
            integration_name=integration,
            writes_per_second=writes_per_second,
        )
    console.print(f"Connection {connection_id} is ready.", markup=False, highlight=False)


@app.command(name="list")
def list_() -> None:
    """List connections with their holds."""
    with reading(ledger()).connect() as opened:
        rows = connections.list_all(opened)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("id", "name", "integration", "held", "since", "token", "not ended"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.id,
            row.name or "",
            row.integration_name or "",
            row.hold_reason or "",
            moment(row.held_at),
            "yes" if row.has_token else "no",
            str(row.waiting),
        )
    console.print(table)


def _read_token(connection_id: str) -> str:
    if sys.stdin.isatty():
        token = str(typer.prompt(f"Access token of {connection_id}", hide_input=True))
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise typer.BadParameter("no access token came: type it at the prompt or pipe it into standard input")
    if not token.isascii() or not token.isprintable():
        raise typer.BadParameter("the access token has characters that no HTTP header can carry")
    return token
