"""Each event is complete in itself, short, and has nothing personal of the order; on a story that brings them all."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import select, update

from worker.cancellation.event import MAX_BYTES, OF_A_CANCELLATION, write_event
from worker.cancellation.policy import Policy
from worker.cancellation.proof import Confirmation
from worker.ledger import (
    confirmations,
    connections,
    dead_letters,
    deadlines,
    endpoints,
    holds,
    notices,
    queries,
    transitions,
)
from worker.ledger.claims import CLAIM_COLUMNS, confirm_claim
from worker.ledger.dead_letters import DeadLetter
from worker.ledger.deadlines import DeadlineAtRisk
from worker.ledger.schema import cancellations, documents
from worker.ledger.schema import connections as connections_table
from worker.telemetry.events import STREAM_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from worker import CancelClient
    from worker.ledger.feed_reader import FeedEvent
    from worker.testing.sandbox import TrackstarSandbox

pytest_plugins = ["worker.testing"]

c = cancellations.c
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OF_EVERY = (
    *("id", "type", "schema", "at", "connection_id", "connection_name", "order_id", "reference_id", "order_number"),
    *("cancellation_id", "generation", "status", "verdict", "evidence", "as_of", "known_by", "safe_to_refund"),
    *("reason", "metadata", "requested_by", "traceparent"),
)
OF_THE_JOB = {
    "connection_id": "shop-1",
    "connection_name": "Shop One",
    "metadata": {"desk": 7},
    "requested_by": "oms",
    "traceparent": TRACE,
}
STORY = {"1": "cancelled", "2": "refused", "3": "accepted_then_open", "4": "cancelled"}


def state(client: CancelClient, order_id: str, **more: Any) -> str:
    job = {name: value for name, value in OF_THE_JOB.items() if name not in {"connection_id", "connection_name"}}
    return client.enqueue("shop-1", order_id, **{**job, **numbers_of(order_id), **more})


def numbers_of(order_id: str) -> dict[str, str]:
    return {"reference_id": f"R-{order_id}", "order_number": f"#{order_id}"}


@pytest.fixture
def told(cancel_client: CancelClient, trackstar_sandbox: TrackstarSandbox) -> list[FeedEvent]:
    """All that is told of a story in which everything happens."""
    ids = {}
    for order_id, outcome in STORY.items():
        trackstar_sandbox.answers(order_id, outcome)
        ids[order_id] = state(cancel_client, order_id)
    cancel_client.change(ids["1"], priority="urgent")
    with trackstar_sandbox.engine.begin() as db:
        db.execute(update(connections_table).values(name="Shop One"))
    trackstar_sandbox.advance(hours=3)
    trackstar_sandbox.answers("4", "shipped")
    trackstar_sandbox.advance(hours=3)
    ids["5"] = state(cancel_client, "5", send_by=trackstar_sandbox.now + timedelta(hours=1))
    with trackstar_sandbox.engine.begin() as db:
        _what_the_sandbox_does_not_do(db, ids)
    return list(cancel_client.events(timeout=0.0))


def _what_the_sandbox_does_not_do(db: Connection, ids: dict[str, str]) -> None:
    transitions.replay(db, [ids["2"]])
    waiting = db.execute(select(c.send_by, c.received_at).where(c.id == ids["5"])).one()
    risk = DeadlineAtRisk(ids["5"], "shop-1", "5", None, waiting.send_by, 1, 50.0, waiting.received_at)
    assert 1 == deadlines.warn(db, [(risk, waiting.send_by + timedelta(hours=1))])
    unproven = db.execute(select(*CLAIM_COLUMNS).where(c.id == ids["3"])).one()
    later = Confirmation(verdict=unproven.verdict, evidence=None, known_by=waiting.send_by + timedelta(days=1))
    db.execute(update(cancellations).where(c.id == ids["3"]).values(known_by=waiting.send_by, needs_person=None))
    before = confirm_claim(db.execute(select(*CLAIM_COLUMNS).where(c.id == ids["3"])).one())
    assert confirmations.apply_confirmations(db, [(before, later)])
    standing = queries.get(db, ids["1"], Policy())
    assert standing
    notices.add_already_ended(db, [standing])  # type: ignore[list-item]
    notices.add_stream_repaired(db, "cancellations:inbox", "ids_ahead")
    holds.hold(db, ["shop-1"], holds.OUTAGE)
    holds.resume(db, ["shop-1"], {holds.OUTAGE})
    holds.hold_all(db)
    holds.resume_all(db)
    letter = DeadLetter(source="cancellations:inbox", entry_id="1-1", raw=b"{", reason="invalid_json", error="no")
    dead_letters.insert_dead_letters(db, [letter])
    dead_letters.note_requeued(db, 1)
    connections.remove(db, "shop-1")
    endpoint = endpoints.add(db, "https://oms.invalid/", "")
    for percent in (50, 100):
        endpoints.announce_level(db, endpoint, percent, percent // 10)
    endpoints.remove(db, endpoint)


def test_each_event_of_a_cancellation_has_every_field_and_its_jobs_own(told: list[FeedEvent]) -> None:
    assert set(STREAM_EVENTS) == {each.event.type for each in told}
    for each in told:
        if each.event.type not in OF_A_CANCELLATION:
            continue
        said = msgspec.json.decode(write_event(each.event))
        own = {**OF_THE_JOB, **numbers_of(said["order_id"])}
        assert set(OF_EVERY) <= set(said), each.event.type
        assert own == {name: said[name] for name in own}, each.event.type
        assert None not in {said["generation"], said["status"], said["safe_to_refund"]}, each.event.type


def test_the_money_of_each_order_is_told_once_and_recalled_with_what_it_recalls(told: list[FeedEvent]) -> None:
    said = [
        (each.event.order_id, each.event.type, each.event.recalls)  # type: ignore[union-attr]
        for each in told
        if each.event.type.startswith("refund.")
    ]

    assert [
        ("1", "refund.released", None),
        ("2", "refund.recalled", "refused"),  # a person ran it again, and then it was cancelled
        ("2", "refund.refused", None),
        ("2", "refund.released", None),
        ("4", "refund.recalled", "released"),
        ("4", "refund.released", None),
        ("5", "refund.released", None),
    ] == sorted(said, key=str)


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text of a document that no event may hold: words of our own aside."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in {"id", "status", "raw_status", "channel", "reference_id", "order_number"}:
                yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)
    elif isinstance(value, str) and len(value) > 2:
        yield value


def test_nothing_of_an_orders_document_is_told(told: list[FeedEvent], trackstar_sandbox: TrackstarSandbox) -> None:
    with trackstar_sandbox.engine.connect() as db:
        kept = db.execute(select(documents.c.order_snapshot).where(documents.c.order_snapshot.is_not(None))).scalars()
        personal = {text for each in kept for text in texts_of(msgspec.json.decode(each))}
    all_told = b"\n".join(write_event(each.event) for each in told).decode()

    assert {"123 Main St", "Apt 2"} <= personal
    assert [] == sorted(text for text in personal if text in all_told)


def test_the_largest_job_that_is_allowed_makes_no_event_of_more_than_four_kilobytes(
    cancel_client: CancelClient, trackstar_sandbox: TrackstarSandbox
) -> None:
    box = "\U0001f4e6"
    longest = {"requested_by": box * 1000, "reason": box * 1000, "metadata": {"k": box * 1000}}
    names = {"idempotency_key": box * 255, "reference_id": box * 255, "order_number": box * 255}
    cancel_client.enqueue(box * 255, box * 255, **longest, **names)  # type: ignore[arg-type]
    trackstar_sandbox.advance(hours=3)
    told = cancel_client.events(types=["cancellation.ended", "refund.released"], timeout=0.0)
    found = [write_event(each.event) for each in told]

    assert 2 == len(found)
    for each in found:
        assert MAX_BYTES >= len(each)
        assert {"metadata", "requested_by"} <= set(msgspec.json.decode(each)["left_out"])
