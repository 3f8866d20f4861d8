"""What becomes of a verdict once Trackstar's copy is renewed, on whole workers, against the warehouse's truth.

The stories of one ledger happen side by side in one deployment with two workers, for a question about crawls is asked
every half minute only; then each is looked at by itself.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from harness.ledgers import LEDGERS, SLOW_LEDGERS
from harness.truth import record_id, untruths

from worker.ledger.freshness import crawls_of_all
from worker.ledger.queries import Timeline
from worker.ledger.record import Cancellation
from worker.runtime.freshness import ASK_SECONDS
from worker.streams import HINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.deployment import Deployment, MakeDeployment

    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
# At the one a crawl can be asked for; those of the other are switched off.
FORCED, DISABLED = "forced", "disabled"
ASKED_SECONDS = 3 * ASK_SECONDS  # for one question and what follows from it, on a busy machine
# A crawl is taken to have begun up to a second earlier than it did, and each must begin after the last request ended.
APART_SECONDS = 3.0
NO = ("400:integration",)


class Run(msgspec.Struct, frozen=True):
    """What was recorded of each order in the end, and before and after the first crawl; and what was asked."""

    before: dict[str, Cancellation]
    after_one_crawl: dict[str, Cancellation]
    timelines: dict[str, Timeline]
    began_at: datetime
    seconds: float
    lists: int
    writes: int  # to the connection whose crawl can be asked for
    untruths: list[str]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", LEDGERS)
def test_each_verdict_becomes_what_the_warehouse_shows_after_crawls(
    make_deployment: MakeDeployment, vault: TokenVault, subtests: pytest.Subtests, kind: str
) -> None:
    run = _run(make_deployment, vault, kind)
    for story in STORIES:
        with subtests.test(story.__name__):
            story(run)


def _run(make_deployment: MakeDeployment, vault: TokenVault, kind: str) -> Run:
    with make_deployment(kind, {"FORCE_SYNC": "true"}, sync_schedules=True, refuse_sync=404) as deployment:
        jobs = _arrange(deployment, vault)
        began_at, began = datetime.now(UTC), time.monotonic()
        for _ in range(2):
            deployment.start_worker().wait_until_ready()
        ids = deployment.client.enqueue_many(
            {"connection_id": where, "order_id": what} for what, where in jobs.items()
        )
        before = _until_its_crawls_are_known(deployment, jobs)
        deployment.trackstar.ship(SHOP, "cancelled, then shipped")
        known = {each: _requests(deployment, each) for each in ("stays open", "nods only")}
        _crawl(
            deployment,
            lambda: (
                {"cancelled, then shipped", "by others", "too young"} <= _decided(deployment)
                and all(_requests(deployment, each) > count for each, count in known.items())
            ),
        )
        after_one_crawl = {row.order_id: row for row in deployment.all()}
        _crawl(deployment, lambda: {"stays open", "nods only"} <= _decided(deployment))
        deployment.wait_until(lambda: "forced" in _decided(deployment), "the crawl that was asked for", ASKED_SECONDS)
        return Run(
            before,
            after_one_crawl,
            {each: deployment.timeline(id_) for each, id_ in zip(jobs, ids, strict=True)},
            began_at,
            time.monotonic() - began,
            deployment.trackstar.connections_lists,
            deployment.trackstar.traffic(FORCED).writes,
            [each for order, where in jobs.items() for each in untruths(deployment, [order], where)],
        )


def _arrange(deployment: Deployment, vault: TokenVault) -> dict[str, str]:
    """Make the orders of all stories; return each with its connection."""
    deployment.connect(vault, [SHOP, FORCED, DISABLED])
    trackstar = deployment.trackstar
    trackstar.connect(FORCED, refuse_sync=None, crawl_length=1)
    trackstar.connect(DISABLED, crawl_state="disabled")
    trackstar.add_order(SHOP, "cancelled, then shipped")
    trackstar.add_order(SHOP, "stays open", script=NO)
    trackstar.add_order(SHOP, "nods only", script=["open"])
    trackstar.add_order(SHOP, "too young", synced=False)
    trackstar.add_order(SHOP, "by others")
    trackstar.add_order(FORCED, "forced")
    trackstar.add_order(DISABLED, "never crawled", script=NO)
    for connection_id, order_id in ((SHOP, "by others"), (FORCED, "forced")):
        assert trackstar.cancel_by_somebody(connection_id, order_id)
    return {order.order_id: order.connection_id for order in trackstar.orders()}


def _until_its_crawls_are_known(deployment: Deployment, jobs: dict[str, str]) -> dict[str, Cancellation]:
    """Return how everything stands before the first crawl of the shop."""

    def known() -> bool:
        with deployment.ledger.connect() as db:
            return set(jobs.values()) <= crawls_of_all(db).keys()

    def all_stand() -> bool:
        return all(row and (row.ended or row.outcome_reason) for row in map(_record(deployment), jobs))

    deployment.wait_until(all_stand, "every answer")
    deployment.wait_until(known, "the first question", ASKED_SECONDS)
    deployment.wait_until(lambda: "never crawled" in _decided(deployment), "a person to be asked", ASKED_SECONDS)
    return {row.order_id: row for row in deployment.all()}


def _record(deployment: Deployment) -> Callable[[str], Cancellation | None]:
    rows = {row.order_id: row for row in deployment.all()}
    return rows.get


def _requests(deployment: Deployment, order_id: str) -> int:
    return len(deployment.timeline(record_id(order_id, SHOP)).attempts)


def _decided(deployment: Deployment) -> set[str]:
    """Return the orders of which everything is known that crawls can tell; of one that ships, not its first proof."""
    ended = [row for row in deployment.all() if row.ended and row.known_by is None]
    return {row.order_id for row in ended if (row.order_id, row.verdict) != ("cancelled, then shipped", "cancelled")}


def _crawl(deployment: Deployment, fact: Callable[[], bool]) -> None:
    time.sleep(APART_SECONDS)
    deployment.trackstar.sync(SHOP)
    deployment.wait_until(fact, "what follows from a crawl", ASKED_SECONDS)


def _told(timeline: Timeline) -> list[str]:
    return [event["type"] for event in timeline.events if event["type"].startswith("cancellation.")]


def _end(row: Cancellation) -> tuple[str, str | None, str | None, str]:
    return row.status, row.verdict, row.evidence, str(row.safe_to_refund)


def what_somebody_else_cancelled_is_proven_by_the_next_crawl(run: Run) -> None:
    before, after = run.before["by others"], run.timelines["by others"]

    assert ("rejected", "unknown", None, "not yet") == _end(before)
    assert before.known_by is not None
    assert before.known_by > run.began_at + timedelta(minutes=30)
    assert ("rejected", "cancelled", "read_back", "yes") == _end(after.cancellation)
    assert ["cancellation.ended", "cancellation.verdict_raised"] == [
        kind for kind in _told(after) if kind != "cancellation.known_by_moved"
    ]


def what_stays_open_has_a_date_and_is_a_no_after_two_crawls(run: Run) -> None:
    before, after = run.before["stays open"], run.timelines["stays open"].cancellation

    assert ("rejected", "unknown", None, "not yet") == _end(before)
    assert before.known_by is not None
    assert ("rejected", "unknown", None, "not yet") == _end(run.after_one_crawl["stays open"])
    assert ("rejected", "not_cancelled", "fresh_read_back", "no") == _end(after)
    assert after.ended_at is not None
    assert after.as_of is not None
    assert after.ended_at < after.as_of < after.ended_at + timedelta(seconds=run.seconds)
    assert (None, None, None) == (after.known_by, after.needs_person, after.confirm_at)


def what_was_cancelled_and_shipped_is_contradicted_by_the_next_crawl(run: Run) -> None:
    before, after = run.before["cancelled, then shipped"], run.timelines["cancelled, then shipped"]

    assert ("succeeded", "cancelled", "response", "yes") == _end(before)
    assert ("succeeded", "not_cancelled", "read_back", "no") == _end(after.cancellation)
    assert [("cancellation.ended", "cancelled"), ("cancellation.contradicted", "not_cancelled")] == [
        (event["type"], event["payload"]["verdict"])
        for event in after.events
        if event["type"].startswith("cancellation.")
    ]


def what_was_too_young_for_the_copy_is_cancelled_after_the_next_crawl(run: Run) -> None:
    before, after = run.before["too young"], run.timelines["too young"]

    assert (False, None, "order_not_found_yet") == (before.ended, before.verdict, before.outcome_reason)
    assert before.known_by is not None
    assert ("succeeded", "cancelled", "response", "yes") == _end(after.cancellation)
    assert ["cancellation.ended"] == _told(after)


def what_was_accepted_and_stays_open_is_for_a_person_after_two_crawls(run: Run) -> None:
    after = run.timelines["nods only"]

    assert run.after_one_crawl["nods only"].known_by is not None
    assert ("succeeded", "accepted", "response", "not yet") == _end(after.cancellation)
    assert ("accepted_but_open", None) == (after.cancellation.needs_person, after.cancellation.known_by)
    assert 1 == _told(after).count("cancellation.needs_person")


def where_no_crawl_comes_a_person_is_asked_once(run: Run) -> None:
    before, after = run.before["never crawled"], run.timelines["never crawled"]

    assert ("crawls_disabled", None) == (before.needs_person, before.known_by)
    assert ("unknown", "crawls_disabled") == (after.cancellation.verdict, after.cancellation.needs_person)
    assert 1 == _told(after).count("cancellation.needs_person")


def a_crawl_is_asked_for_once_where_one_waits_and_proves_what_it_brings(run: Run) -> None:
    assert ("rejected", "cancelled", "read_back", "yes") == _end(run.timelines["forced"].cancellation)
    assert 2 == run.writes  # the cancel, and one crawl that two workers asked for


def two_workers_ask_together_every_half_minute_at_most(run: Run) -> None:
    assert 1 < run.lists <= 1 + run.seconds / ASK_SECONDS


def every_record_is_true(run: Run) -> None:
    assert [] == run.untruths


STORIES = (
    what_somebody_else_cancelled_is_proven_by_the_next_crawl,
    what_stays_open_has_a_date_and_is_a_no_after_two_crawls,
    what_was_cancelled_and_shipped_is_contradicted_by_the_next_crawl,
    what_was_too_young_for_the_copy_is_cancelled_after_the_next_crawl,
    what_was_accepted_and_stays_open_is_for_a_person_after_two_crawls,
    where_no_crawl_comes_a_person_is_asked_once,
    a_crawl_is_asked_for_once_where_one_waits_and_proves_what_it_brings,
    two_workers_ask_together_every_half_minute_at_most,
    every_record_is_true,
)


@pytest.mark.deployment(settings={"NOT_FOUND_GRACE_SECONDS": "0"}, ledgers=SLOW_LEDGERS)
def test_without_grace_an_order_that_is_not_found_is_refused_at_once(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "too young", synced=False)
    deployment.start_worker()
    ended = deployment.client.wait(deployment.client.enqueue(shop, "too young"), 30)

    assert ("rejected", "not_cancelled", "refusal", "no") == _end(ended)
    assert ("order_not_found", 1) == (ended.outcome_reason, ended.attempts)


@pytest.mark.parametrize("hint", [{"order_id": "o-1"}, {}], ids=["order", "connection"])
def test_a_hint_makes_the_order_be_read_at_once(deployment: Deployment, shop: str, hint: dict[str, Any]) -> None:
    """The first of the times to read back is two minutes after the end; no crawl is told."""
    deployment.trackstar.add_order(shop, "o-1", script=NO)
    deployment.start_worker()
    ended = deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30)
    assert "unknown" == ended.verdict
    reads = len(deployment.trackstar.order(shop, "o-1").truth.reads)
    assert deployment.trackstar.cancel_by_somebody(shop, "o-1")
    deployment.trackstar.sync(shop)

    deployment.redis.xadd(HINTS, {"connection_id": shop, **hint})

    # Ten seconds after the last request, which the hint comes too soon after.
    deployment.trackstar.wait_until(lambda: len(deployment.trackstar.order(shop, "o-1").truth.reads) > reads, 25)
    deployment.wait_until(lambda: deployment.record(record_id("o-1")).verdict == "cancelled", "what was read")
    assert ("rejected", "cancelled", "read_back", "yes") == _end(deployment.record(record_id("o-1")))
    assert 0 == deployment.redis.xlen(HINTS)
