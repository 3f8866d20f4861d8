"""What an operator repairs from the command line: replay, withdraw, dead letters; each with a worker that goes on."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from harness.commands import run
from harness.truth import record_id, untruths

from worker.streams import INBOX

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment


def test_a_refused_cancel_is_replayed_with_a_new_key_and_its_timeline_shows_both(
    deployment: Deployment, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1", script=["422"])
    deployment.start_worker()
    refused = deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 60)

    assert "rejected" == refused.status
    code, said = run(deployment, "replay", "--status", "rejected", "--dry-run")
    assert (0, 1) == (code, said.count(refused.id))
    assert "1 would be replayed" in said
    assert refused == deployment.client.get(refused.id)

    assert 0 == run(deployment, "replay", refused.id, "--reason", "corrected")[0]
    deployment.wait_until(lambda: deployment.record(refused.id).status == "succeeded", "the replay")

    truth = deployment.trackstar.order(shop, "o-1").truth
    assert [refused.id, f"{refused.id}-2"] == [request.key for request in truth.cancels]
    code, said = run(deployment, "show", "o-1")
    assert "replay, by " in said
    timeline = " ".join(said.split())
    assert ["HTTP 422, validation_failed", "cancellation replayed", "HTTP 200, accepted"] == re.findall(
        r"HTTP \d+, \w+|cancellation replayed", timeline
    )
    assert "(generation 2)" in said
    assert [] == untruths(deployment, ["o-1"], shop)


def test_a_proven_cancel_is_not_replayed_and_it_says_why(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    deployment.start_worker()
    ended = deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 60)
    code, said = run(deployment, "replay", ended.id, "--reason", "asked again")

    assert 1 == code
    assert "its order is proven cancelled" in said
    assert ended == deployment.client.get(ended.id)


def test_a_cancel_is_withdrawn_before_it_is_sent_and_too_late_is_said_as_such(
    deployment: Deployment, shop: str
) -> None:
    worker = deployment.start_worker()
    deployment.trackstar.add_order(shop, "o-1")
    sent = deployment.client.enqueue(shop, "o-1")
    deployment.client.wait(sent, 60)
    waits = deployment.client.enqueue("nobody-added", "o-2")
    deployment.wait_until(lambda: deployment.client.get(waits), "its record")

    assert (0, f"{waits}  withdrawn\n") == run(deployment, "withdraw", waits)
    code, said = run(deployment, "withdraw", sent)
    assert 1 == code
    assert "cannot be withdrawn: it is succeeded" in said
    found = deployment.record(waits)
    assert ("withdrawn", "not_cancelled", "never_sent") == (found.status, found.verdict, found.evidence)
    assert worker.alive


def test_a_dead_letter_is_shown_and_requeued_corrected(deployment: Deployment, shop: str, tmp_path: Path) -> None:
    deployment.start_worker()
    deployment.trackstar.add_order(shop, "o-1")
    deployment.redis.xadd(INBOX, {"job": json.dumps({"connection_id": shop, "order": "o-1"})})
    deployment.wait_until(lambda: "invalid_job" in run(deployment, "dead-letters", "list")[1], "the dead letter")

    code, said = run(deployment, "dead-letters", "show", "1")
    assert (0, True) == (code, "unknown field `order`" in said)
    code, said = run(deployment, "dead-letters", "requeue", "1")  # as it came it is as bad as before
    assert (2, True) == (code, "unknown field `order`" in said)

    _, raw = run(deployment, "dead-letters", "show", "1", "--raw")
    corrected = tmp_path / "job.json"
    corrected.write_text(raw.replace('"order"', '"order_id"'))
    code, said = run(deployment, "dead-letters", "requeue", "1", "--job", str(corrected))
    assert (0, f"{record_id('o-1')}  o-1\n") == (code, said)
    deployment.wait_until(lambda: deployment.client.get(record_id("o-1")), "the record")

    assert "succeeded" == deployment.client.wait(record_id("o-1"), 60).status
    assert "invalid_job" not in run(deployment, "dead-letters", "list")[1]
    assert "invalid_job" in run(deployment, "dead-letters", "list", "--all")[1]


def test_a_job_that_a_conflict_kept_out_is_requeued_with_another_key_from_standard_input(
    deployment: Deployment, shop: str
) -> None:
    deployment.start_worker()
    for order_id in ("o-1", "o-2"):
        deployment.trackstar.add_order(shop, order_id)
        job = {"connection_id": shop, "order_id": order_id, "idempotency_key": "mine"}
        deployment.redis.xadd(INBOX, {"job": json.dumps(job)})
    deployment.wait_until(lambda: "key_conflict" in run(deployment, "dead-letters", "list")[1], "the dead letter")
    job = {"connection_id": shop, "order_id": "o-2"}
    code, said = run(deployment, "dead-letters", "requeue", "1", "--job", "-", typed=json.dumps(job).encode())

    assert (0, f"{record_id('o-2')}  o-2\n") == (code, said)
    deployment.wait_until(lambda: deployment.client.get(record_id("o-2")), "the record")
    assert "succeeded" == deployment.client.wait(record_id("o-2"), 60).status
