"""What reaches Sentry, through its library's own transport, at an HTTP endpoint of this machine."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
import sentry_sdk
from harness.raw_server import RawServer, whole

from worker import __version__
from worker.telemetry.sentry import alert, report_bug, set_up_sentry
from worker.telemetry.sentry_limit import EVERY_SECONDS, MAX_CONNECTIONS, SentryLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

WHO = {"id": "8d2e4c0e-0000-5000-8000-000000000000", "connection_id": "shop-1", "order_id": "o-1"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Endpoint:
    def __init__(self, server: RawServer) -> None:
        self._server = server
        self.url = f"http://public@127.0.0.1:{server.port}/1"

    def received(self) -> list[dict[str, Any]]:
        """Return the events that came, once all that was told has been sent."""
        sentry_sdk.get_client().close(timeout=10)
        texts = (gzip.decompress(body) for body in self._server.bodies)
        items = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith(b"{")]
        return [item for item in items if "event_id" in item and "platform" in item]


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("SENTRY_ENVIRONMENT", "staging")
    monkeypatch.delenv("SENTRY_RELEASE", raising=False)
    with RawServer(*[whole()] * 200) as server:
        endpoint = Endpoint(server)
        set_up_sentry(endpoint.url, [])
        yield endpoint
        sentry_sdk.get_client().close(timeout=10)
        sentry_sdk.init(trace_propagation_targets=[])  # no client is left that adds headers to requests of other tests


def fail(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        report_bug("cancellation.attempt_failed", connection_id="shop-1", ids=[WHO["id"]], traceparents=[TRACE])


def test_an_alert_carries_release_environment_the_cancellation_and_how_to_look_at_it(sentry: Endpoint) -> None:
    alert("cancellation.exhausted", reason="http_500", verdict="unknown", traceparent=TRACE, **WHO)
    (event,) = sentry.received()

    assert (f"cancel-worker@{__version__}", "staging") == (event["release"], event["environment"])
    assert ["cancellation.exhausted", "shop-1"] == event["fingerprint"]
    assert WHO.items() <= event["tags"].items()
    assert {"id": WHO["id"], "show": f"cancel-worker show {WHO['id']}"} == event["contexts"]["cancellation"]
    assert "4bf92f3577b34da6a3ce929d0e0e4736" == event["contexts"]["trace"]["trace_id"]


def test_a_bug_carries_the_same_with_its_traceback(sentry: Endpoint) -> None:
    fail("a")
    (event,) = sentry.received()

    assert ["cancellation.attempt_failed", "ValueError", "shop-1"] == event["fingerprint"]
    assert f"cancel-worker show {WHO['id']}" == event["contexts"]["cancellation"]["show"]
    assert "ValueError" == event["exception"]["values"][-1]["type"]


def test_a_flood_of_one_kind_is_one_event_and_hides_no_other_kind_or_connection(sentry: Endpoint) -> None:
    for number in range(500):
        alert("cancellation.exhausted", **{**WHO, "order_id": f"o-{number}"})
        fail(str(number))
    alert("cancellation.contradicted", **WHO)
    alert("cancellation.exhausted", **{**WHO, "connection_id": "shop-2"})

    assert [
        ["cancellation.exhausted", "shop-1"],
        ["cancellation.attempt_failed", "ValueError", "shop-1"],
        ["cancellation.contradicted", "shop-1"],
        ["cancellation.exhausted", "shop-2"],
    ] == [event["fingerprint"] for event in sentry.received()]


def test_a_minute_later_the_next_one_is_sent_and_says_how_many_were_left_out() -> None:
    now = 0.0
    limit = SentryLimit(lambda: now)
    at_once = [limit.take("kind", "shop-1") for _ in range(5)]
    now = EVERY_SECONDS - 0.1
    just_before = limit.take("kind", "shop-1")
    now = EVERY_SECONDS

    assert [0, None, None, None, None] == at_once
    assert just_before is None
    assert 5 == limit.take("kind", "shop-1")


def test_a_fault_of_all_connections_is_told_of_a_few() -> None:
    limit = SentryLimit(lambda: 0.0)
    told = [limit.take("kind", f"shop-{number}") for number in range(3000)]

    assert MAX_CONNECTIONS == told.count(0)
    assert 0 == limit.take("another kind", "shop-1")
