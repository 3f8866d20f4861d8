"""SIGKILL at every named point: whatever died where, each cancellation ends once, truthfully, and is told of: to the
feed, to the stream, and to each endpoint in order.

A row of the matrix is a point in the way of a job, and what Trackstar is told to answer so that the point is reached.
A process dies there; a healthy one goes on; then the ledger is compared with what really happened to the orders.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from harness import killable
from harness.deployment import through
from harness.hooks import ALLOWED, Hooks
from harness.ledgers import SLOW_LEDGERS
from harness.receiver import Receiver
from harness.settings import SHORT
from harness.truth import leftovers, record_id, untruths, wait_for_ends

from worker import CancelClient
from worker.ledger import producers
from worker.streams import INBOX, inbox_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment, Worker

    from worker.ledger.vault import TokenVault

# Trackstar renews its copy often, so that what was in doubt is proven within the test.
pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT | ALLOWED, sync_seconds=0.5)

ORDERS = ("o-1", "o-2", "o-3")
RECOVERED_SECONDS = 60.0

KILLABLE = str(Path(killable.__file__))


class Cell(msgspec.Struct, frozen=True):
    """One point, and the scripts of the first order that lead there."""

    point: str
    script: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


WORKER_CELLS = [
    Cell("inbox read"),
    Cell("in the ledger"),
    Cell("committed, inbox not acknowledged"),
    Cell("during the inbox acknowledgement"),
    Cell("before the claim"),
    Cell("claimed"),
    Cell("claimed, before the publish"),
    Cell("during the publish"),
    Cell("after the publish"),
    Cell("message taken"),
    Cell("before the request"),
    Cell("before the Celery acknowledgement"),
    Cell("answer in hand"),
    Cell("answer in hand", script=("applied_then:500",)),
    Cell("during the record"),
    Cell("during the record", script=("applied_then:500",)),
    Cell("refund noted, not committed"),
    Cell("recorded, not committed"),
    Cell("after the record"),
    Cell("after the record", script=("503",)),
    Cell("outcome committed, event not published"),
    Cell("event published, not noted"),
    Cell("retry due, not committed", script=("applied_then:reset",)),
    Cell("read-back answered, not recorded", script=("open:0.1",), reads=("fresh",) * 3),
    Cell("deliveries written, not committed"),
    Cell("deliveries committed, not sent"),
    Cell("webhook sent, not answered"),
    Cell("webhook answered, not noted"),
    Cell("webhook noted, not committed"),
    Cell("webhook noted, the next not sent"),
]
# The point, and the priority of the messages.
CELERY_CELLS = [
    ("Celery message arrived, not on the inbox", 0),
    ("Celery message on the inbox", 0),
    ("Celery message on the inbox", 9),
    ("inbox read", 0),
]
# The point, and how many of three jobs may be on the inbox then.
PRODUCER_CELLS = [("during XADD", {0, 1, 2}), ("after XADD", {3})]
# The same on the inbox of a producer with a name.
NAMED_CELLS = ["inbox read", "committed, inbox not acknowledged", "during the inbox acknowledgement"]
# Where a worker dies that was to rescue what another one left, and where that one died.
RESCUED_AT, RESCUER_AT = "before the request", "claim of a dead worker taken over"

PRODUCER = """
from worker import CancelClient
CancelClient().enqueue_many([{"connection_id": "shop-1", "order_id": each} for each in ("o-1", "o-2", "o-3")])
"""
CELERY_PRODUCER = """
import sys
from celery import Celery
with Celery("oms", broker=sys.argv[1], set_as_current=False) as app:
    for each in ("o-1", "o-2", "o-3"):
        app.send_task(
            "worker.cancel_order",
            kwargs={"connection_id": "shop-1", "order_id": each},
            queue="cancellations",
            priority=int(sys.argv[2]),
        )
"""


def the_id(cell: Cell) -> str:
    return f"{cell.point} {' '.join(cell.script)}".strip()


def arrange(deployment: Deployment, shop: str, script: tuple[str, ...] = (), reads: tuple[str, ...] = ()) -> None:
    """Three orders: the scripted one, one whose answer gets lost after it was applied, one without trouble."""
    deployment.trackstar.add_order(shop, "o-1", script=script, reads=reads)
    deployment.trackstar.add_order(shop, "o-2", script=("applied_then:502",))
    deployment.trackstar.add_order(shop, "o-3")


def enqueue(deployment: Deployment, shop: str) -> None:
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": order_id} for order_id in ORDERS])


@pytest.fixture
def hooks(deployment: Deployment, vault: TokenVault) -> Iterator[Hooks]:
    """Two endpoints at a receiver that takes what comes."""
    with Receiver() as receiver:
        yield Hooks(deployment, vault, receiver)


def all_is_well(deployment: Deployment, shop: str, hooks: Hooks, deaths: int = 1) -> None:
    """Wait for a healthy end, and compare it with the truth; an endpoint may hear one event once more for a death."""
    ids = [record_id(order_id) for order_id in ORDERS]
    wait_for_ends(deployment, ids, RECOVERED_SECONDS)
    deployment.wait_until(lambda: {"yes"} == {deployment.client.safe_to_refund(each) for each in ids}, "proof of all")
    deployment.wait_until(lambda: not leftovers(deployment), "Redis to be empty")

    assert [] == untruths(deployment, ORDERS, shop)
    assert [] == hooks.untruths(most=1 + deaths)


def dying_worker(deployment: Deployment, point: str) -> Worker:
    return deployment.start_worker(command=through("killable.py", "SIGKILL", point))


@pytest.mark.parametrize("cell", WORKER_CELLS, ids=the_id)
def test_a_worker_killed_at_this_point_loses_and_doubles_nothing(
    deployment: Deployment, shop: str, hooks: Hooks, cell: Cell
) -> None:
    arrange(deployment, shop, cell.script, cell.reads)
    victim = dying_worker(deployment, cell.point)
    enqueue(deployment, shop)

    assert -signal.SIGKILL == victim.wait_until_dead(), victim.output

    deployment.start_worker()
    all_is_well(deployment, shop, hooks)


@pytest.mark.parametrize(
    ("script", "reads"),
    [
        pytest.param(("pause",), (), id="before Trackstar applied it"),
        pytest.param(("pause_applied",), (), id="after Trackstar applied it"),
        pytest.param(("applied_then:500",), ("pause",), id="during a read-back"),
    ],
)
def test_a_worker_killed_during_a_request_leaves_no_second_one_beside_it(
    deployment: Deployment, shop: str, hooks: Hooks, script: tuple[str, ...], reads: tuple[str, ...]
) -> None:
    arrange(deployment, shop, script, reads)
    victim = deployment.start_worker()
    enqueue(deployment, shop)
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    victim.kill()
    deployment.trackstar.release(shop, "o-1")  # Trackstar does not notice, and goes on with the request
    deployment.start_worker()

    all_is_well(deployment, shop, hooks)


def test_a_rescuer_killed_during_the_rescue_is_rescued_itself(deployment: Deployment, shop: str, hooks: Hooks) -> None:
    arrange(deployment, shop)
    victim = dying_worker(deployment, RESCUED_AT)
    enqueue(deployment, shop)
    victim.wait_until_dead()
    rescuer = dying_worker(deployment, RESCUER_AT)

    assert -signal.SIGKILL == rescuer.wait_until_dead(), rescuer.output

    deployment.start_worker()
    all_is_well(deployment, shop, hooks, deaths=2)


@pytest.mark.parametrize(("point", "priority"), CELERY_CELLS)
def test_a_job_of_a_celery_producer_outlives_a_worker_killed_at_this_point(
    deployment: Deployment, shop: str, hooks: Hooks, point: str, priority: int
) -> None:
    arrange(deployment, shop)
    victim = dying_worker(deployment, point)
    command = [sys.executable, "-c", CELERY_PRODUCER, deployment.redis_url, str(priority)]
    subprocess.run(command, env={"PATH": deployment.env["PATH"]}, check=True)

    assert -signal.SIGKILL == victim.wait_until_dead(), victim.output

    deployment.start_worker()
    all_is_well(deployment, shop, hooks)


@pytest.mark.parametrize("point", NAMED_CELLS)
def test_a_job_of_a_named_producer_outlives_a_worker_killed_at_this_point(
    deployment: Deployment, shop: str, hooks: Hooks, point: str
) -> None:
    arrange(deployment, shop)
    with deployment.ledger.begin() as db:
        producers.add(db, "oms-a", by="Bea", connections=[shop])
    victim = dying_worker(deployment, point)
    named = CancelClient(deployment.redis_url, producer="oms-a")
    named.enqueue_many([{"connection_id": shop, "order_id": order_id} for order_id in ORDERS])
    named.close()

    assert -signal.SIGKILL == victim.wait_until_dead(), victim.output

    deployment.start_worker()
    all_is_well(deployment, shop, hooks)
    deployment.wait_until(lambda: not deployment.redis.xlen(inbox_of("oms-a")), "its inbox to be empty", 90)
    assert {"oms-a"} == {row.producer for row in deployment.all()}


@pytest.mark.parametrize(("point", "arrived"), PRODUCER_CELLS)
def test_a_producer_killed_at_this_point_may_simply_ask_again(
    deployment: Deployment, shop: str, hooks: Hooks, tmp_path: Path, point: str, arrived: set[int]
) -> None:
    arrange(deployment, shop)
    program = tmp_path / "producer.py"
    program.write_text(PRODUCER)
    env = {name: deployment.env[name] for name in ("PATH", "REDIS_URL")} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, KILLABLE, "SIGKILL", point, str(program)], env=env, check=False)

    assert -signal.SIGKILL == died.returncode
    assert deployment.redis.xlen(INBOX) in arrived

    subprocess.run([sys.executable, str(program)], env=env, check=True)
    deployment.start_worker()
    all_is_well(deployment, shop, hooks)
