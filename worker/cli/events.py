"""The commands that show what other systems are told: `events list` and `events tail`. Knows how an event looks."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.text import Text

from worker.cancellation.event import TYPES, ConnectionEvent, Event, ServiceEvent
from worker.cli.filters import instant_or_age
from worker.cli.parts import console, ledger, print_beside, print_json
from worker.cli.times import moment
from worker.inputs.text import visible
from worker.ledger.feed_reader import NOW, FeedReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.ledger.feed_reader import FeedEvent

app = typer.Typer(
    help="See what other systems are told.\n\nExample: cancel-worker events list --since 1h",
    no_args_is_help=True,
)


def _types(stated: list[str] | None) -> list[str] | None:
    names = [name.strip() for each in stated or () for name in each.split(",")]
    if unknown := [name for name in names if name not in TYPES]:
        raise typer.BadParameter(f"{unknown[0]!r} is no type of an event. There are: {', '.join(TYPES)}.")
    return names or None


def _connections(stated: list[str] | None) -> list[str] | None:
    """Return each as it is stated, and what stands between its commas: an id may have one."""
    return list(dict.fromkeys(name for each in stated or () for name in (each, *each.split(",")))) or None


AGAIN = "may be given again, or several with commas."
Types = Annotated[
    list[str] | None, typer.Option("--type", "--types", callback=_types, help=f"Only of this type; {AGAIN}")
]
NAMED = ("--connection", "--connections", "-c")
Connections = Annotated[
    list[str] | None, typer.Option(*NAMED, callback=_connections, help=f"Only of this connection; {AGAIN}")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, as others get it, with its `cursor`.")]


@app.command(name="list")
def list_(
    since: Annotated[
        datetime,
        typer.Option(
            parser=instant_or_age, metavar="TIME", help="Written since then: an instant, or so long ago (15m, 1h, 2d)."
        ),
    ] = "1h",  # type: ignore[assignment] # read as if it were typed
    type_: Types = None,
    connection: Connections = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 1000,
    as_json: Json = False,
) -> None:
    """List events since a time, the oldest first.

    Example: cancel-worker events list --since 1h --type refund.released
    """
    with ledger(by_index=True) as opened:
        reader = FeedReader(opened, types=type_ or (), connections=connection or ())
        found = (each for each in reader.follow(reader.start(None, since), timeout=0.0) if each.event.at >= since)
        _show(islice(found, limit), as_json=as_json)
        if more := next(found, None):
            print_beside(f"There are more, from {moment(more.event.at)} on: raise --limit.")


@app.command()
def tail(type_: Types = None, connection: Connections = None, as_json: Json = False) -> None:
    """Show events as they come, until Ctrl-C.

    Example: cancel-worker events tail --type refund.released -c shop-1
    """
    with ledger(by_index=True) as opened:
        reader = FeedReader(opened, types=type_ or (), connections=connection or ())
        _show(reader.follow(reader.start(NOW, None), timeout=None), as_json=as_json)


def _show(found: Iterable[FeedEvent], *, as_json: bool) -> None:
    for each in found:
        if as_json:
            print_json({**msgspec.to_builtins(each.event), "cursor": each.cursor})
        else:
            # Each a text of its own: so none can be taken for a part of another.
            type_ = Text(visible(each.event.type).ljust(28))
            console.print(moment(each.event.at), type_, *_about(each.event), soft_wrap=True)


def _about(event: Event) -> list[str]:
    if isinstance(event, ServiceEvent):
        return _said({"reason": event.reason, "source": event.source, "count": event.count, "stream": event.stream})
    if isinstance(event, ConnectionEvent):
        return _said({"connection": event.connection_id, "reason": event.reason, "connections": event.connections})
    known = {"order": event.order_id, "of": event.connection_id, "status": event.status, "verdict": event.verdict}
    return _said({**known, "safe to refund:": event.safe_to_refund})


def _said(facts: dict[str, Any]) -> list[str]:
    return [text for name, value in facts.items() if value is not None for text in (name, str(value))]
