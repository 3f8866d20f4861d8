"""A job's `traceparent` is wherever people follow the cancellation, and nowhere at Trackstar."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from harness.ledgers import SLOW_LEDGERS
from harness.onlooker import Onlooker
from harness.raw_server import RawServer, whole
from harness.truth import record_id

from worker.streams import EVENTS

if TYPE_CHECKING:
    from harness.deployment import Deployment

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACE = f"00-{TRACE_ID}-{SPAN_ID}-01"
REFUSED = whole(b'{"error": "cancel_order is not enabled", "origin": "trackstar"}', status=b"403 Forbidden")

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS)


def test_a_trace_is_in_every_line_alert_task_and_event_of_its_cancellation(deployment: Deployment, shop: str) -> None:
    job = record_id("o-1")
    with (
        RawServer(*[REFUSED] * 50) as trackstar,
        RawServer(*[whole()] * 50) as sentry,
        Celery("another", broker=deployment.redis_url, set_as_current=False) as app,
        Onlooker(app) as onlooker,
    ):
        worker = deployment.start_worker(
            TRACKSTAR_BASE_URL=trackstar.url, SENTRY_DSN=f"http://public@127.0.0.1:{sentry.port}/1"
        )
        onlooker.wait_for("worker-heartbeat")
        fields = {"connection_id": shop, "order_id": "o-1"}
        headers = {"traceparent": TRACE}
        app.send_task("worker.cancel_order", kwargs=fields, headers=headers, queue="cancellations")
        onlooker.wait_for("task-failed")
        ((_, ((_, told),)),) = deployment.redis.xread({EVENTS: "0"}, count=1, block=30_000)
        worker.wait_for_line("cancellation.not_enabled")
        assert 0 == worker.stop()  # and all is sent

    record = deployment.record(job)
    lines = [json.loads(line) for line in worker.output.splitlines() if job in line]
    assert TRACE == record.traceparent
    assert {"cancellation.requested", "cancellation.attempted", "cancellation.not_enabled"} == {
        line["event"] for line in lines
    }
    assert {TRACE} == {line["traceparent"] for line in lines}
    assert TRACE == json.loads(told[b"event"])["traceparent"]
    assert {TRACE} == {event["payload"]["traceparent"] for event in deployment.timeline(job).events}
    (task,) = (event for event in onlooker.seen if event["type"] == "task-received")
    assert (job, repr({"traceparent": TRACE})) == (task["uuid"], task["kwargs"])
    (event,) = (each for each in _events(sentry) if each.get("message") == "cancellation.not_enabled")
    assert (job, TRACE) == (event["tags"]["id"], event["tags"]["traceparent"])
    assert (TRACE_ID, SPAN_ID) == (event["contexts"]["trace"]["trace_id"], event["contexts"]["trace"]["span_id"])
    assert any(b"/cancel " in head for head in trackstar.heads)
    assert [] == [head for head in trackstar.heads if TRACE_ID.encode() in head or b"trace" in head.lower()]


def _events(sentry: RawServer) -> list[dict[str, Any]]:
    """Return the documents of all envelopes that came."""
    texts = (gzip.decompress(body) for body in sentry.bodies)
    return [json.loads(line) for text in texts for line in text.splitlines() if line.startswith(b"{")]
