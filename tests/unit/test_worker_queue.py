"""What Celery is handed on a worker's own list, as Celery itself reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.worker.request import Request
from kombu.transport.virtual import Message

from worker.broker.worker_queue import ATTEMPT_BATCH, batch_message
from worker.cancellation.celery_message import UnacceptableMessage, read_message

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = "cancellations.w-1"
IDS = [f"00000000-0000-5000-8000-{number:012}" for number in range(3)]


@pytest.fixture
def app() -> Iterator[Celery]:
    """A Celery with the task of a batch and a broker in memory."""
    with Celery("reader", broker="memory://", set_as_current=False) as app:

        @app.task(name=ATTEMPT_BATCH, shared=False)
        def attempt_batch(ids: list[str]) -> None: ...

        app.finalize()
        yield app


def read_as_celery_does(app: Celery, raw: bytes) -> Request:
    with app.connection_for_read() as connection:
        message = Message(json.loads(raw), channel=connection.default_channel, accept=["application/json"])
        return Request(message, app=app, hostname="reader", decoded=False)


def test_what_celery_is_handed_it_reads_as_one_call_with_these_ids(app: Celery) -> None:
    call = read_as_celery_does(app, batch_message(QUEUE, IDS))

    assert (ATTEMPT_BATCH, [IDS], {}) == (call.name, call.args, call.kwargs)


def test_what_is_shown_of_a_call_is_the_number_of_its_ids_and_never_an_id(app: Celery) -> None:
    call = read_as_celery_does(app, batch_message(QUEUE, IDS))

    assert ("3 cancellations", "{}") == (call.argsrepr, call.kwargsrepr)
    assert not [each for each in IDS if each in repr(call) or each in str(call.info(safe=True))]


def test_no_header_of_it_drops_a_call_or_delays_it(app: Celery) -> None:
    call = read_as_celery_does(app, batch_message(QUEUE, IDS))

    assert (None, None, (None, None)) == (call.eta, call.expires, call.time_limits)


def test_each_message_is_a_call_of_its_own() -> None:
    read: list[dict[str, Any]] = [json.loads(batch_message(QUEUE, IDS)) for _ in range(2)]

    assert 2 == len({message["headers"]["id"] for message in read})
    assert 2 == len({message["properties"]["delivery_tag"] for message in read})


def test_on_the_list_of_the_producers_it_is_refused() -> None:
    with pytest.raises(UnacceptableMessage) as refusal:
        read_message(batch_message(QUEUE, IDS))

    assert "unknown_task" == refusal.value.reason
