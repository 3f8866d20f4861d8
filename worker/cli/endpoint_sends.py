"""Commands that send to an endpoint: a test event from here and now, and what was sent before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cancellation.event import example_for, number_of
from worker.cli.endpoints import Id  # noqa: TC001 - the command line reads it
from worker.cli.filters import instant_or_age
from worker.cli.parts import Who, Why, acting, console, ledger
from worker.inputs.receivers import read_receiver
from worker.ledger import audit, endpoints
from worker.ledger.audit import Action, Kind
from worker.ledger.told import read_told
from worker.ledger.vault import TokenVault, of_endpoint
from worker.settings import load_settings
from worker.webhooks.request import request_to
from worker.webhooks.sender import Network, trust, try_once

if TYPE_CHECKING:
    from worker.cancellation.delivery import Tried
    from worker.ledger.endpoints import EndpointRow
    from worker.settings import Settings


def send_test(endpoint_id: Id, reason: Why = None, who: Who = None) -> None:
    """Send a signed test event now, from here, and show the answer. Exits 1 where it is not accepted.

    Example: cancel-worker endpoints test ep_0123456789abcdef
    """
    settings = load_settings()
    with ledger() as opened, opened.begin() as db:
        row, encrypted = endpoints.known(db, endpoint_id), endpoints.encrypted_secret(db, endpoint_id)
        audit.write(db, acting(who, reason), Action.TEST, Kind.ENDPOINT, endpoint_id)
    tried = _send_test(row, TokenVault(settings.keys).decrypt(encrypted, of_endpoint(row.id)), settings)
    status = f", status {tried.status}" if tried.status else ""
    console.print(f"{tried.reason}{status}, after {tried.seconds:.2f} s", style="green" if tried.delivered else "red")
    if tried.said:
        console.print(tried.said.decode(errors="replace"), soft_wrap=True)
    if not tried.delivered:
        raise typer.Exit(1)


def _send_test(row: EndpointRow, secret: str, settings: Settings) -> Tried:
    now, private = datetime.now(UTC), settings.webhook_allow_private
    proxy = settings.webhook_proxy.get_secret_value()
    network = Network(allow_private=private, tls=trust(settings.ca_bundle), proxy=proxy)
    receiver = read_receiver(row.url, allow_private=private)
    request = request_to(receiver, example_for(row.id, now), [secret], now)
    return try_once(receiver, request, network)


def replay(
    endpoint_id: Id,
    since: Annotated[
        Any,
        typer.Option(
            parser=instant_or_age, metavar="TIME", help="All since then: an instant, or so long ago (15m, 2d)."
        ),
    ] = None,
    event: Annotated[str | None, typer.Option("--id", metavar="EVENT", help="This one: its id, evt_...")] = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Send events again. A receiver knows them by their ids, which stay the same.

    Example: cancel-worker endpoints replay ep_0123456789abcdef --since 2h
    """
    if (since is None) is (event is None):
        raise typer.BadParameter("say what: either --since or --id")
    more = {"replayed": event or since.isoformat()}
    with ledger() as opened, opened.begin() as db:
        endpoints.known(db, endpoint_id)
        if since is not None:
            endpoints.replay_since(db, endpoint_id, since)
        else:
            number = number_of(event or "")
            told = [each for each in read_told(db, [number or 0]) if each.event.id == event]
            if not told:
                raise ValueError(f"There is no event {event} (any more): see `cancel-worker events list --json`.")
            endpoints.replay_one(db, endpoint_id, told[0])
        audit.write(db, acting(who, reason), Action.REPLAY, Kind.ENDPOINT, endpoint_id, after=more)
    console.print(f"Endpoint {endpoint_id} is sent {'it' if event else 'them'} again.")
