"""Commands about endpoints: where events are sent to over HTTP. A secret is shown once, when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from worker.cli.events import AGAIN, NAMED, Types
from worker.cli.parts import Who, Why, acting, acting_for_a_reason, console, ledger, print_json, recorded
from worker.cli.times import moment
from worker.inputs.receivers import read_receiver
from worker.ledger import audit, binding, connections, endpoints
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.vault import TokenVault, of_endpoint
from worker.settings import load_settings
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.ledger.endpoints import EndpointRow

SHOWN = 10  # tries, and deliveries that wait

app = typer.Typer(
    help="Send events to your own HTTP endpoints, signed (Standard Webhooks).\n\n"
    "Example: cancel-worker endpoints list",
    no_args_is_help=True,
)
Id = Annotated[str, typer.Argument(metavar="ID", help="As `endpoints list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="https://HOST/PATH")],
    type_: Types = None,
    connection: Annotated[list[str] | None, typer.Option(*NAMED, help=f"Only of this connection; {AGAIN}")] = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Add an endpoint, which gets the events that come from now on. Shows its secret, once.

    Example: cancel-worker endpoints add https://oms.example/hook
    """
    settings = load_settings()
    vault, secret = TokenVault(settings.keys), new_secret()
    vault.encrypt("")  # says how to make a key where there is none
    read_receiver(url, allow_private=settings.webhook_allow_private)
    with ledger() as opened, opened.begin() as db:
        named = _known(db, connection)
        id_ = endpoints.new_id()
        encrypted = binding.encrypt(db, vault, secret, of_endpoint(id_))
        endpoints.add(db, url, encrypted, types=type_, connections=named, id_=id_)
        after = audit.facts(db, Kind.ENDPOINT, [id_])[id_]
        audit.write(db, acting(who, reason), Action.ADD, Kind.ENDPOINT, id_, after=after)
    console.print(f"Endpoint {id_} is added. Its secret, which is not shown again:")
    console.print(secret, soft_wrap=True)


def _known(db: Connection, stated: list[str] | None) -> list[str]:
    """Return the connections that are stated; of a text with commas it, or what stands between them."""
    names = [name for each in stated or () for name in ([each] if connections.find(db, each) else each.split(","))]
    return [connections.known(db, name).id for name in dict.fromkeys(names)]


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List endpoints, and how they stand.

    Example: cancel-worker endpoints list --json
    """
    with ledger() as opened, read_only(opened) as db:
        found = endpoints.list_all(db)
    if as_json:
        for each in found:
            print_json(msgspec.to_builtins(each))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("id", "url", "types", "connections", "state", "failures", "waiting", "set aside", "behind"):
        table.add_column(column, overflow="fold")
    for row in found:
        counts = (str(each) for each in (row.failures, row.waiting, row.set_aside, row.behind))
        table.add_row(row.id, row.url, _all_or(row.types), _all_or(row.connections), row.state, *counts)
    console.print(table)


@app.command()
def show(endpoint_id: Id, as_json: Json = False) -> None:
    """Say how one endpoint stands: its state, what waits, and the last tries.

    Example: cancel-worker endpoints show ep_0123456789abcdef
    """
    with ledger() as opened, read_only(opened) as db:
        row = endpoints.known(db, endpoint_id)
        tries = endpoints.last_tries(db, endpoint_id, SHOWN)
        waiting = endpoints.waiting(db, endpoint_id, SHOWN)
    if as_json:
        first = [{"event_number": each.event_number, "tries": each.tries, "due_at": each.due_at} for each in waiting]
        tried = [msgspec.to_builtins(each) for each in tries]
        print_json({**msgspec.to_builtins(row), "first_waiting": first, "last_tries": tried})
        return
    console.print(f"Endpoint {row.id}: {row.url}", style="bold", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(row).items():
        table.add_row(name, value)
    console.print(table)
    _show_tries(tries)
    for each in waiting:
        when = f"next try {moment(each.due_at)}" if each.due_at else "set aside: `endpoints resume` sends it again"
        console.print(f"waits: event {each.event_number} after {each.tries} tries, {when}")


def _facts(row: EndpointRow) -> dict[str, str]:
    since = f" in a row since {moment(row.failing_since)}" if row.failing_since else ""
    again = f", left alone until {moment(row.retry_at)}" if row.retry_at and row.failures else ""
    both = f"both sign until {moment(row.old_secret_until)}" if row.old_secret_until else "one"
    return {
        "state": row.state,
        "types": _all_or(row.types),
        "connections": _all_or(row.connections),
        "failures": f"{row.failures}{since}{again}",
        "secrets": both,
        "backlog": f"{row.waiting} wait, {row.set_aside} are set aside, {row.behind} events are not looked at so far",
        "added": moment(row.created_at),
    }


def _all_or(names: list[str] | None) -> str:
    return ", ".join(names) if names else "all"


def _show_tries(tries: list[endpoints.Try]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("tried at", "event", "try", "status", "reason", "took"):
        table.add_column(column)
    for each in tries:
        status = str(each.status or "")
        took = f"{each.duration_ms} ms"
        table.add_row(moment(each.at), str(each.event_number), str(each.try_), status, each.reason, took)
    if tries:
        console.print(table)


@app.command()
def rotate(endpoint_id: Id, reason: Why = None, who: Who = None) -> None:
    """Give an endpoint a new secret, shown once. For a day both sign, so that the receiver can change over.

    Example: cancel-worker endpoints rotate ep_0123456789abcdef
    """
    secret = new_secret()
    vault = TokenVault(load_settings().keys)
    with recorded(acting(who, reason), Action.ROTATE, Kind.ENDPOINT, [endpoint_id]) as db:
        endpoints.rotate(db, endpoint_id, binding.encrypt(db, vault, secret, of_endpoint(endpoint_id)))
    console.print("The new secret, which is not shown again (the one before signs too for a day):")
    console.print(secret, soft_wrap=True)


@app.command()
def pause(endpoint_id: Id, reason: Why = None, who: Who = None) -> None:
    """Send nothing to an endpoint; what comes waits for it.

    Example: cancel-worker endpoints pause ep_0123456789abcdef
    """
    with recorded(acting(who, reason), Action.PAUSE, Kind.ENDPOINT, [endpoint_id]) as db:
        paused = endpoints.pause(db, endpoint_id)
    console.print(f"Endpoint {endpoint_id} {'is' if paused else 'was already'} paused.")


@app.command()
def resume(endpoint_id: Id, reason: Why = None, who: Who = None) -> None:
    """Go on from where it was, also with what was set aside.

    Example: cancel-worker endpoints resume ep_0123456789abcdef
    """
    with recorded(acting(who, reason), Action.RESUME, Kind.ENDPOINT, [endpoint_id]) as db:
        endpoints.resume(db, endpoint_id)
    console.print(f"Endpoint {endpoint_id} goes on.")


@app.command()
def remove(endpoint_id: Id, reason: Why = None, who: Who = None) -> None:
    """Forget an endpoint, and what it was not sent so far. Needs --reason.

    Example: cancel-worker endpoints remove ep_0123456789abcdef --reason moved
    """
    by = acting_for_a_reason(who, reason)
    with recorded(by, Action.REMOVE, Kind.ENDPOINT, [endpoint_id]) as db:
        endpoints.remove(db, endpoint_id)
    console.print(f"Endpoint {endpoint_id} is removed.")
