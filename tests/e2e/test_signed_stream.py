"""What a worker tells on the streams is signed; whoever reads with the secret takes nothing from anybody else."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from harness.ledgers import SLOW_LEDGERS

from worker import EventError, read_stream_event
from worker.cancellation.event import CancellationEvent
from worker.streams import DEAD_LETTERS, EVENTS, INBOX

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment

NEW, OLD, OTHER = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"n", b"o", b"x"))

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS)


def entries(deployment: Deployment, stream: str, count: int) -> list[dict[bytes, bytes]]:
    """Return this many entries, as soon as they are there."""
    deployment.wait_until(lambda: deployment.redis.xlen(stream) >= count, f"{count} entries of {stream}")
    return [fields for _, fields in deployment.redis.xrange(stream)]


def is_refused(fields: dict[bytes, bytes], secret: str) -> bool:
    try:
        read_stream_event(fields, secret)
    except EventError:
        return True
    return False


def test_each_entry_is_signed_with_both_secrets_of_a_rotation_and_no_other_is_believed(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(f"{NEW},{OLD}\n")
    worker = deployment.start_worker(EVENT_SIGNING_SECRET_FILE=str(tmp_path / "secret"))
    deployment.trackstar.add_order(shop, "1001")
    deployment.client.enqueue(shop, "1001", metadata={"basket": "größer"})
    deployment.redis.xadd(INBOX, {"job": "{}"})
    told = entries(deployment, EVENTS, 2) + entries(deployment, DEAD_LETTERS, 1)
    assert 0 == worker.stop()

    read = [read_stream_event(fields, secret) for fields in told for secret in (NEW, OLD, f"{OTHER} {OLD}")]
    assert ["cancellation.ended"] * 3 + ["refund.released"] * 3 + ["dead_letter.kept"] * 3 == [e.type for e in read]
    assert isinstance(read[0], CancellationEvent)
    assert ({"basket": "größer"}, "yes") == (read[0].metadata, read[0].safe_to_refund)
    assert [True] * 3 == [is_refused(fields, OTHER) for fields in told]
    assert not [each for each in (NEW, OLD) if each.removeprefix("whsec_") in worker.output]


def test_a_forged_and_an_altered_entry_are_refused(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker(EVENT_SIGNING_SECRET=NEW)
    deployment.trackstar.add_order(shop, "1001", status="fulfilled")
    deployment.client.enqueue(shop, "1001")
    (ended, refused) = entries(deployment, EVENTS, 2)
    assert 0 == worker.stop()

    for forged in (forged_of(ended), ended | {b"event": forged_of(ended)["event"]}, forged_of(refused)):
        deployment.redis.xadd(EVENTS, forged)  # type: ignore[arg-type, unused-ignore]
    told = entries(deployment, EVENTS, 5)
    assert [False, False, True, True, True] == [is_refused(fields, NEW) for fields in told]
    assert "no" == read_stream_event(told[1], NEW).safe_to_refund  # type: ignore[union-attr]


def forged_of(fields: dict[bytes, bytes]) -> dict[Any, Any]:
    """Return what somebody without the secret would write, to have an order refunded that has shipped."""
    event = json.loads(fields[b"event"]) | {"type": "refund.released", "safe_to_refund": "yes"}
    return {"type": "refund.released", "event": json.dumps(event), "event_id": "9"}


def test_a_worker_does_not_start_with_a_secret_that_is_none(deployment: Deployment) -> None:
    worker = deployment.start_worker(EVENT_SIGNING_SECRET="swordfish")

    assert 0 != worker.wait_until_dead()
    assert "EVENT_SIGNING_SECRET: must be whsec_ and base64 of 24 to 64 random bytes. Make one with" in worker.output
    assert "swordfish" not in worker.output
