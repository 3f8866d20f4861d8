"""From a job on Redis to the receiver of a webhook: an outcome reaches it signed, also where Redis was emptied."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from harness.receiver import Received, Receiver

from worker.ledger import endpoints
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from harness.deployment import Deployment

    from worker.ledger.vault import TokenVault


@pytest.mark.deployment(settings={"WEBHOOK_ALLOW_PRIVATE": "true"})
def test_an_outcome_and_its_refund_reach_a_receiver_also_where_redis_was_emptied(
    deployment: Deployment, shop: str, vault: TokenVault
) -> None:
    back = threading.Event()

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        return (200 if back.is_set() else 503), {}

    secret = new_secret()
    with Receiver(answer) as receiver:
        with deployment.ledger.begin() as db:
            wants = ["cancellation.ended", "refund.released"]
            endpoints.add(db, receiver.url, vault.encrypt(secret), types=wants, connections=[shop])
        deployment.trackstar.add_order(shop, "o-1")
        deployment.start_worker().wait_until_consuming()
        record_id = deployment.client.enqueue(connection_id=shop, order_id="o-1")
        receiver.wait_for(1, 30)
        deployment.redis.flushall()
        back.set()
        deployment.wait_until(
            lambda: {"cancellation.ended", "refund.released"} <= set(receiver.types()), "both events"
        )

        in_feed = {each.event.type for each in deployment.client.events(timeout=0.0)}
        assert {"cancellation.ended", "refund.released"} <= in_feed
        first, *others = receiver.received
        assert "cancellation.ended" == first.event["type"]
        assert first.id in {each.id for each in others}
        for each in receiver.received:
            assert record_id == each.verified(secret)["data"]["cancellation_id"]
        released = receiver.received[-1].event
        assert ("refund.released", "o-1", "yes") == tuple(
            released[name] for name in ("type", "order_id", "safe_to_refund")
        )
