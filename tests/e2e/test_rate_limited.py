"""A server that asks for a long pause: a hold with an end that everybody sees, and that a person can end at once."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import run
from harness.truth import untruths
from sqlalchemy import literal, update

from worker.ledger.dialects import now_plus
from worker.ledger.schema import cancellations, connections

if TYPE_CHECKING:
    from harness.deployment import Deployment

YEAR = 31_536_000
RATE_LIMITED = "rate_limited"
FAR_AHEAD = format_datetime(datetime.now(UTC) + timedelta(days=365), usegmt=True)


def cancel(deployment: Deployment, order_id: str, *script: str, **job: Any) -> str:
    deployment.trackstar.add_order("shop-1", order_id, script=list(script))
    return str(deployment.client.enqueue("shop-1", order_id, **job))


def held(deployment: Deployment, order_id: str = "o-1", retry_after: object = YEAR, **job: Any) -> str:
    """Let a server ask for a pause of a year, and return the id of the cancel that it told so."""
    told = cancel(deployment, order_id, f"429:trackstar:{retry_after}", **job)
    deployment.wait_until(lambda: deployment.hold_of("shop-1") == RATE_LIMITED, "the hold")
    return told


def let_it_end(deployment: Deployment, seconds: float) -> None:
    """Move the end of the hold near, as if the rest of its time had passed."""
    with deployment.ledger.begin() as db:
        db.execute(update(connections).values(probe_at=now_plus(literal(seconds))))


@pytest.mark.parametrize("retry_after", [YEAR, FAR_AHEAD, "9" * 30], ids=["a year", "a date", "beyond any number"])
def test_a_long_pause_is_a_hold_of_at_most_our_cap_with_an_end_that_everybody_sees(
    deployment: Deployment, shop: str, retry_after: object
) -> None:
    deployment.env["COLUMNS"] = "200"
    worker = deployment.start_worker()
    told = held(deployment, retry_after=retry_after)
    behind = cancel(deployment, "o-2")
    deployment.wait_until(lambda: deployment.client.get(behind), "its record")
    found = deployment.record(told)

    assert ("pending", RATE_LIMITED, 0) == (found.status, found.hold_reason, found.attempts)
    assert found.held_until is not None
    assert timedelta(seconds=800) < found.held_until - datetime.now(UTC) <= timedelta(seconds=900)
    until = f"until {found.held_until:%Y-%m-%d %H:%M:%S} UTC"
    assert f"{RATE_LIMITED} {until}" in " ".join(run(deployment, "connections", "list")[1].split())
    assert f"({RATE_LIMITED}) {until}" in run(deployment, "show", told)[1]
    worker.wait_for_line("connection.held")
    assert (shop, RATE_LIMITED) == tuple(worker.told("connection.held")[name] for name in ("connection_id", "reason"))
    assert 1 == deployment.trackstar.traffic(shop).writes


def test_it_ends_by_itself_though_nothing_waits(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    told = held(deployment)
    assert 0 == run(deployment, "withdraw", told)[0]
    let_it_end(deployment, 1.0)
    deployment.wait_until(lambda: deployment.hold_of(shop) is None, "the end")
    worker.wait_for_line("connection.resumed")

    assert "succeeded" == deployment.client.wait(cancel(deployment, "o-2"), 30).status


def test_at_its_end_what_waited_goes_out_truthfully(deployment: Deployment, shop: str) -> None:
    for _ in range(2):  # whoever of them comes first
        deployment.start_worker()
    told, behind = held(deployment), cancel(deployment, "o-2")
    let_it_end(deployment, 1.0)

    assert ["succeeded"] * 2 == [deployment.client.wait(each, 30).status for each in (told, behind)]
    assert [] == untruths(deployment, ["o-1", "o-2"], shop)


def test_resume_ends_it_at_once_also_for_who_was_told_to_wait(deployment: Deployment, shop: str) -> None:
    deployment.start_worker()
    told, behind = held(deployment), cancel(deployment, "o-2")

    assert (0, "Connection shop-1 goes on.\n") == run(deployment, "connections", "resume", shop, "--reason", "now")
    began = time.monotonic()
    assert ["succeeded"] * 2 == [deployment.client.wait(each, 30).status for each in (told, behind)]
    assert time.monotonic() - began < 10


def test_what_waits_for_its_end_expires_at_its_send_by(deployment: Deployment, shop: str) -> None:
    deployment.start_worker()
    told = held(deployment, send_by=(datetime.now(UTC) + timedelta(minutes=5)).isoformat())
    with deployment.ledger.begin() as db:
        db.execute(update(cancellations).values(send_by=now_plus(literal(1.0))))
    ended = deployment.client.wait(told, 30)

    assert ("expired", "not_cancelled") == (ended.status, ended.verdict)
    assert RATE_LIMITED == deployment.hold_of(shop)


def test_a_pause_of_a_few_seconds_is_no_hold(deployment: Deployment, shop: str) -> None:
    deployment.start_worker()
    told = cancel(deployment, "o-1", "429:2")

    assert "succeeded" == deployment.client.wait(told, 30).status
    assert "connection.held" not in [event["type"] for event in deployment.timeline(told).events]
    assert deployment.hold_of(shop) is None


def test_a_worker_whose_request_is_late_for_a_paused_connection_ends_when_it_is_asked(
    deployment: Deployment, shop: str
) -> None:
    worker = deployment.start_worker(WRITES_PER_SECOND="2")
    worker.wait_until_ready()
    orders = [f"o-{number}" for number in range(12)]
    for order_id in orders:
        deployment.trackstar.add_order(shop, order_id, script=["429:50"] if order_id == "o-0" else [])
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": each} for each in orders])
    deployment.wait_until(lambda: deployment.trackstar.traffic(shop).writes, "the first request")
    worker.send(signal.SIGTERM)
    asked = time.monotonic()

    assert 0 == worker.wait_until_dead(15)
    assert time.monotonic() - asked < 15
    assert {"pending", "waiting", "succeeded"} >= {row.status for row in deployment.all()}
