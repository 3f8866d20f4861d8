"""Examples of what travels: jobs as the client writes them, and one event of each type, as a ledger tells it.

Rules and statements are production's; the clock stands still where this file does not move it, so that the examples
come out the same each time. Where they are written, `contract` knows.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import time_machine
from sqlalchemy import select

from worker.cancellation.event import example_for, write_event
from worker.cancellation.proof import Prospect, Unproven
from worker.cancellation.request import make_request
from worker.cancellation.signature import Signer
from worker.cancellation.stream_entry import write_entry
from worker.ledger import (
    connections,
    dead_letters,
    deadlines,
    endpoints,
    holds,
    notices,
    queries,
    rereads,
    transitions,
)
from worker.ledger.dead_letters import DeadLetter
from worker.ledger.schema import events
from worker.ledger.told import Told, read_told
from worker.streams import INBOX
from worker.testing.ledger import make_ledger
from worker.testing.sandbox import TrackstarSandbox

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.client import CancelClient

START = datetime(2026, 11, 30, 9, tzinfo=UTC)
SHOP = "shop-1"
MINIMAL = {"connection_id": SHOP, "order_id": "1001"}
FULL = {
    **MINIMAL,
    "idempotency_key": "refund-4711",
    "send_by": "2026-11-30T12:00:00Z",
    "priority": "urgent",
    "requested_by": "oms",
    "reason": "the customer changed her mind",
    "metadata": {"ticket": 4711, "channel": "chat", "gift": False},
    "reference_id": "5733211",
    "order_number": "#1001",
    "batch": "2026-11-30-morning",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "requested_at": "2026-11-30T09:00:00Z",
}
SECRET = "whsec_dGhpcyBpcyBhbiBleGFtcGxlLCBubyBzZWNyZXQgYXQgYWxs"


def jobs() -> dict[str, Any]:
    """Return jobs by their names."""
    made = {"minimal": make_request(MINIMAL), "full": make_request(FULL)}
    return {f"job.{name}": json.loads(request.to_json()) for name, request in made.items()}


def first_of_each_type() -> dict[str, Told]:
    """Return the first event of each type of the story below."""
    with (
        tempfile.TemporaryDirectory() as folder,
        time_machine.travel(START, tick=False),
        mock.patch("time.monotonic", return_value=0.0),  # a second look adds the time that it took
    ):
        sandbox = TrackstarSandbox(f"sqlite:///{make_ledger(Path(folder) / 'ledger.sqlite3')}")
        try:
            _play(sandbox, sandbox.client(actor="oms"))
            with sandbox.engine.connect() as db:
                told = read_told(db, list(db.execute(select(events.c.id)).scalars()))
        finally:
            sandbox.close()
    found: dict[str, Told] = {}
    for each in told:
        found.setdefault(each.event.type, each)
    return dict(sorted(found.items()))


def _play(sandbox: TrackstarSandbox, client: CancelClient) -> None:
    sandbox.hold(SHOP)
    sandbox.resume(SHOP)
    with sandbox.engine.begin() as db:
        connections.add(db, SHOP, SHOP, name="The first shop")
    _of_cancellations(sandbox, client)
    _of_those_that_wait(sandbox, client)
    with sandbox.engine.begin() as db:
        holds.hold_all(db)
        holds.resume_all(db)
        letter = DeadLetter(source=INBOX, entry_id="1-1", raw=b"{}", reason="invalid_job", error="")
        (kept,) = dead_letters.insert_dead_letters(db, [letter])
        dead_letters.note_requeued(db, kept.kept)
        notices.add_stream_repaired(db, INBOX, "ids_ahead")
        connections.remove(db, SHOP)
        _of_an_endpoint(db)


def _of_an_endpoint(db: Connection) -> None:
    with mock.patch("secrets.token_hex", return_value="0123456789abcdef"):
        endpoint = endpoints.add(db, "https://oms.invalid/webhooks", "")
    endpoints.announce_level(db, endpoint, 50, 5)
    endpoints.announce_level(db, endpoint, 100, 10)
    endpoints.remove(db, endpoint)


def _of_cancellations(sandbox: TrackstarSandbox, client: CancelClient) -> None:
    """Let orders end, be proven later than told, be stated again, need a person, and turn."""
    sandbox.answers("1002", "refused")
    sandbox.answers("1003", "accepted_then_open")
    again = {**MINIMAL, "order_id": "1002"}
    _, refused, _ = client.enqueue_many([FULL, again, {**MINIMAL, "order_id": "1003"}])
    sandbox.advance()
    with sandbox.engine.begin() as db:
        rereads.revise(db, SHOP, _later, 10)
    sandbox.advance(hours=3)
    with sandbox.engine.begin() as db:
        notices.add_already_ended(db, queries.find_standing(db, [make_request(again)]).values())
        transitions.replay(db, [refused])
    sandbox.answers("1001", "shipped")
    sandbox.answers("1002", "refused")
    sandbox.advance(hours=2)


def _later(known: Unproven) -> Prospect:
    return Prospect(known.ended_at + timedelta(minutes=30), known.ended_at + timedelta(hours=3))


def _of_those_that_wait(sandbox: TrackstarSandbox, client: CancelClient) -> None:
    """Change one that waits; another one then has too little time."""
    sandbox.hold(SHOP)
    send_by = sandbox.now + timedelta(hours=1)
    changed, _ = client.enqueue_many([{**MINIMAL, "order_id": each, "send_by": send_by} for each in ("1004", "1005")])
    client.change(changed, priority="urgent")
    sandbox.resume(SHOP)
    with sandbox.engine.begin() as db:
        deadlines.warn(db, [(each, send_by + timedelta(minutes=5)) for each in deadlines.at_risk(db, 1)])


# ---- as files


def _entry(told: Told, signer: Signer | None = None) -> dict[str, str]:
    fields = write_entry(told.number, told.event, signer, told.event.at)
    return {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in fields.items()}


def files() -> dict[str, Any]:
    """Return what each file of examples holds, by its name without `.json`."""
    told = first_of_each_type()
    made = [*(each.event for each in told.values()), example_for("ep_0123456789abcdef", START)]
    events = {event.type: json.loads(write_event(event)) for event in made}
    signed = _entry(told["refund.released"], Signer([SECRET]))
    return {**jobs(), **events, "stream-entry": {"secret": SECRET, "fields": signed}}


def of_this_release() -> dict[str, Any]:
    """Return what later releases must still read: jobs, and entries of the streams."""
    return {"jobs": list(jobs().values()), "events": [_entry(each) for each in first_of_each_type().values()]}
