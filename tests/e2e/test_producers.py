"""Two producers with real workers, one of which floods: what is measured is counted, not timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.ledgers import SLOW_LEDGERS
from harness.settings import SHORT
from harness.truth import record_id, untruths, wait_for_ends

from worker import CancelClient
from worker.ledger import producers
from worker.streams import inbox_of

if TYPE_CHECKING:
    from harness.deployment import Deployment

SHOPS = ("shop-1", "shop-2")
pytestmark = [
    pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT, shops=SHOPS, sync_seconds=0.5),
    pytest.mark.usefixtures("shop"),
]

FLOOD = [f"flood-{number}" for number in range(600)]
FEW = [f"few-{number}" for number in range(20)]


def enqueue(deployment: Deployment, producer: str, shop: str, names: list[str]) -> None:
    for name in names:
        deployment.trackstar.add_order(shop, name)
    client = CancelClient(deployment.redis_url, producer=producer)
    client.enqueue_many([{"connection_id": shop, "order_id": name} for name in names])
    client.close()


def test_a_flood_waits_on_its_own_inbox_while_another_producers_jobs_are_done(deployment: Deployment) -> None:
    with deployment.ledger.begin() as db:
        producers.add(db, "flood", by="Bea", connections=["shop-1"], per_second=2)
        producers.add(db, "few", by="Bea", connections=["shop-2"])
    enqueue(deployment, "flood", "shop-1", FLOOD)
    deployment.start_worker()
    deployment.start_worker()
    enqueue(deployment, "few", "shop-2", FEW)
    few = [record_id(name, "shop-2") for name in FEW]
    wait_for_ends(deployment, few)

    assert len(FLOOD) // 2 < deployment.redis.xlen(inbox_of("flood"))
    assert {"few"} == {row.producer for row in deployment.all() if row.connection_id == "shop-2"}
    assert [] == untruths(deployment, FEW, "shop-2")

    with deployment.ledger.begin() as db:
        producers.change(db, "flood", per_second=None)  # followed by who runs
    flood = {record_id(name) for name in FLOOD}
    deployment.wait_until(lambda: flood <= {row.id for row in deployment.all()}, "all of the flood in the ledger")
    deployment.wait_until(lambda: 0 == deployment.redis.xlen(inbox_of("flood")), "its inbox to be empty")
