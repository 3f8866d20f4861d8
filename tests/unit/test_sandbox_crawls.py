"""How old the sandbox's copy is: crawls by the clock and forced ones, other people, warehouses that act late."""

import json
import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from unit.sandbox_requests import CALLER, HOUR, ORDER, SHOP, Clock, body_of, cancel, control, end, status_read

from worker.dev.sandbox import World
from worker.dev.sandbox.contract import Caller, Contract
from worker.dev.sandbox.replies import Reply

MONTH = 30 * 24 * HOUR


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    """Crawls begin each hour and take a minute."""
    world = World("k", clock=clock, writes_per_second=None, reads_per_second=None, crawl_length=60)
    world.connect(SHOP, access_token="t1")
    return world


@pytest.fixture
def contract(world: World) -> Contract:
    return Contract(world)


def schedule_of(contract: Contract, name: str = SHOP) -> Any:
    schedules = body_of(contract.connection("k", name))["data"]["sync_schedules"]
    (found,) = [each for each in schedules if each["function_name"] == "get_orders"]
    return found


def seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def force(contract: Contract, functions: Any = ("get_orders",), caller: Caller = CALLER) -> Reply:
    return end(contract, contract.force_crawl(caller, json.dumps({"functions_to_sync": functions}).encode()))


def changed(contract: Contract, since: float, limit: str = "", token: str = "") -> Any:
    return body_of(end(contract, contract.read_changed(CALLER, instant(since), limit, token)))


def copy_of(world: World, order_id: str = ORDER) -> str | None:
    return world.order(SHOP, order_id).truth.copy_status


# -- what a crawl brings


def test_a_crawl_shows_at_its_end_what_stood_at_its_begin(world: World, clock: Clock) -> None:
    world.add_order(SHOP, "before")
    world.add_order(SHOP, "during")
    clock.forward(HOUR - 1)
    world.cancel_by_somebody(SHOP, "before")
    clock.forward(2)
    world.cancel_by_somebody(SHOP, "during")
    assert ["open", "open"] == [copy_of(world, "before"), copy_of(world, "during")]
    clock.forward(59)
    assert ["cancelled", "open"] == [copy_of(world, "before"), copy_of(world, "during")]
    clock.forward(HOUR - 1)
    assert "open" == copy_of(world, "during")
    clock.forward(1)
    assert "cancelled" == copy_of(world, "during")


def test_what_changes_twice_around_the_begin_is_brought_in_two_crawls(world: World, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    world.edit(SHOP, ORDER, status="picked")
    clock.forward(HOUR + 30)
    world.ship(SHOP, ORDER)
    clock.forward(30)
    assert "picked" == copy_of(world)
    clock.forward(HOUR)
    assert "fulfilled" == copy_of(world)


def test_orders_younger_than_the_copy_are_learnt(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER, synced=False)
    clock.forward(HOUR + 59)
    assert 404 == end(contract, contract.read(CALLER, ORDER)).status
    clock.forward(1)
    assert "open" == status_read(contract)


@pytest.mark.parametrize("whole", [True, False])
def test_what_does_not_touch_its_update_time_is_missed_until_something_does(
    world: World, clock: Clock, whole: bool
) -> None:
    world.connect(SHOP, touches_updates=not whole)
    order = world.add_order(SHOP, ORDER)
    before = order.real.updated
    clock.forward(10)
    world.cancel_by_somebody(SHOP, ORDER, touches=None if whole else False)
    clock.forward(MONTH)
    assert ("cancelled", "open", before) == (order.truth.status, copy_of(world), order.real.updated)
    world.edit(SHOP, ORDER, {"tags": ["seen"]}, touches=True)
    clock.forward(HOUR + 60)
    assert "cancelled" == copy_of(world)


def test_our_own_success_is_not_taken_back_by_a_crawl_that_began_before_it(
    world: World, contract: Contract, clock: Clock
) -> None:
    world.add_order(SHOP, ORDER)
    world.edit(SHOP, ORDER)
    clock.forward(HOUR + 1)
    cancel(contract)
    for _ in range(3):
        assert "cancelled" == status_read(contract)
        clock.forward(60)


def test_somebody_cancels_only_what_can_be_cancelled(world: World) -> None:
    for name in ("a", "b"):
        world.add_order(SHOP, name)
    world.ship(SHOP, "a")
    assert [False, True, False] == [world.cancel_by_somebody(SHOP, name) for name in ("a", "b", "b")]
    assert 0 == world.order(SHOP, "b").truth.effective_cancels


# -- a warehouse that applies late


@pytest.mark.parametrize(
    ("step", "real", "effect"), [("open:90", "cancelled", 1), ("open:ship:90", "fulfilled", 0)]
)  # fmt: skip
@pytest.mark.parametrize("untouched", [True, False])
def test_an_accepted_cancel_comes_true_late_and_is_missed_by_the_crawl_between(
    world: World, contract: Contract, clock: Clock, step: str, real: str, effect: int, untouched: bool
) -> None:
    order = world.add_order(SHOP, ORDER, script=[step + ":untouched" * untouched])
    world.add_order(SHOP, "another")
    clock.forward(HOUR - 60)
    accepted = clock.time
    assert "open" == body_of(cancel(contract))["data"]["status"]
    clock.forward(2 * 60)
    # Whoever looks at another order does not change when this one changes.
    world.order(SHOP, "another").refresh()
    assert (real, effect, "open") == (order.truth.status, order.truth.effective_cancels, copy_of(world))
    assert accepted + 90 == order.real.updated or untouched
    clock.forward(HOUR)
    assert ("open" if untouched else real) == copy_of(world)


def test_what_was_due_long_ago_was_done_at_its_time(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=[f"open:{HOUR + 30}"])
    cancel(contract)
    clock.forward(HOUR + 90)
    schedule_of(contract)
    assert ("cancelled", "open") == (order.truth.status, order.truth.copy_status)
    assert clock.time - 60 == order.real.updated
    clock.forward(HOUR)
    assert "cancelled" == order.truth.copy_status


@pytest.mark.parametrize("status", ["fulfilled", None])
def test_what_somebody_did_first_stands_against_what_was_accepted(
    world: World, contract: Contract, clock: Clock, status: str | None
) -> None:
    order = world.add_order(SHOP, ORDER, script=["open:90"])
    cancel(contract)
    world.ship(SHOP, ORDER, status)
    clock.forward(MONTH)
    assert (status or "open", 0) == (order.truth.status, order.truth.effective_cancels)


# -- what the schedule says


def test_the_schedule_tells_of_the_last_crawls(contract: Contract, clock: Clock) -> None:
    start = clock.time
    clock.forward(2 * HOUR + 59)
    told = schedule_of(contract)
    assert (start + 2 * HOUR, start + HOUR + 60) == (
        seconds(told["last_crawl_start"]),
        seconds(told["last_crawl_end"]),
    )
    assert (3600, True, "sync_in_progress") == (told["sync_frequency"], told["in_progress"], told["sync_status"])
    clock.forward(1)
    told = schedule_of(contract)
    assert start + 2 * HOUR + 60 == seconds(told["last_crawl_end"]) == seconds(told["latest_sync"])
    assert (False, "enabled") == (told["in_progress"], told["sync_status"])


def test_disabled_crawls_do_not_come_and_one_that_runs_ends(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    world.cancel_by_somebody(SHOP, ORDER)
    clock.forward(HOUR)
    world.connect(SHOP, crawl_state="disabled")
    assert (True, "disabled") == (schedule_of(contract)["in_progress"], schedule_of(contract)["sync_status"])
    clock.forward(60)
    assert "cancelled" == copy_of(world)
    world.edit(SHOP, ORDER, status="open")
    before = schedule_of(contract)
    clock.forward(MONTH)
    assert (before, "cancelled") == (schedule_of(contract), copy_of(world))


@pytest.mark.parametrize("running", [True, False])
def test_a_crawl_that_is_stuck_never_ends_and_is_given_up_when_mended(
    world: World, contract: Contract, clock: Clock, running: bool
) -> None:
    start = clock.time
    world.add_order(SHOP, ORDER)
    world.cancel_by_somebody(SHOP, ORDER)
    clock.forward(HOUR + 1 if running else 1)
    world.connect(SHOP, crawl_state="stuck")
    clock.forward(MONTH)
    told = schedule_of(contract)
    assert (start + HOUR, start) == (seconds(told["last_crawl_start"]), seconds(told["last_crawl_end"]))
    assert ("sync_in_progress", "open") == (told["sync_status"], copy_of(world))
    world.connect(SHOP, crawl_state="enabled")
    assert "enabled" == schedule_of(contract)["sync_status"]
    clock.forward(HOUR + 60)
    assert "cancelled" == copy_of(world)


def test_a_crawl_in_error_brings_nothing_and_the_next_good_one_all(
    world: World, contract: Contract, clock: Clock
) -> None:
    start = clock.time
    world.connect(SHOP, crawl_state="error")
    world.add_order(SHOP, ORDER)
    world.cancel_by_somebody(SHOP, ORDER)
    clock.forward(MONTH + 60)
    told = schedule_of(contract)
    assert (start + MONTH, start) == (seconds(told["last_crawl_start"]), seconds(told["last_crawl_end"]))
    assert ("error", "open") == (told["sync_status"], copy_of(world))
    world.connect(SHOP, crawl_state="enabled")
    assert "error" == schedule_of(contract)["sync_status"]
    clock.forward(HOUR)
    assert ("enabled", "cancelled") == (schedule_of(contract)["sync_status"], copy_of(world))


def test_crawls_longer_than_their_period_leave_instants_out(world: World, contract: Contract, clock: Clock) -> None:
    start = clock.time
    world.connect(SHOP, crawl_length=1.5 * HOUR)
    for hours, began, ended in ((2, 1, 0), (2.5, 1, 2.5), (3, 3, 2.5), (5, 5, 4.5), (6.5, 5, 6.5), (724, 723, 722.5)):
        clock.time = start + hours * HOUR
        told = schedule_of(contract)
        assert (began, ended) == tuple(
            (seconds(told[name]) - start) / HOUR for name in ("last_crawl_start", "last_crawl_end")
        )


def test_a_crawl_that_runs_ends_as_it_began_whatever_is_arranged(
    world: World, contract: Contract, clock: Clock
) -> None:
    start = clock.time
    world.connect(SHOP, crawl_length=1.5 * HOUR)
    clock.time = start + 1.5 * HOUR
    world.connect(SHOP, crawl_length=60)
    clock.time = start + 2.6 * HOUR
    told = schedule_of(contract)
    assert (start + HOUR, start + 2.5 * HOUR) == (seconds(told["last_crawl_start"]), seconds(told["last_crawl_end"]))


def test_a_connection_has_crawls_of_its_own(world: World, contract: Contract, clock: Clock) -> None:
    start = clock.time
    world.connect("shop-2", sync_seconds=600, crawl_length=0, crawl_offset=100)
    clock.forward(699)
    told = schedule_of(contract, "shop-2")
    assert (600, start + 100) == (told["sync_frequency"], seconds(told["last_crawl_start"]))
    clock.forward(1)
    assert start + 700 == seconds(schedule_of(contract, "shop-2")["last_crawl_start"])
    assert 3600 == schedule_of(contract)["sync_frequency"]


def test_without_a_frequency_the_copy_is_always_fresh(clock: Clock) -> None:
    world = World("k", clock=clock, sync_seconds=0)
    world.connect(SHOP, access_token="t1")
    world.add_order(SHOP, ORDER)
    world.cancel_by_somebody(SHOP, ORDER)
    assert "cancelled" == copy_of(world)


def test_trackstars_clock_may_be_ahead(clock: Clock) -> None:
    world = World("k", clock=clock, clock_skew=100)
    world.connect(SHOP)
    assert clock.time + 100 == seconds(schedule_of(Contract(world))["last_crawl_start"])


@pytest.mark.parametrize("form", [None, [], {}, "soon", [{"function_name": "get_orders"}], [None, 7]])
def test_the_schedules_may_have_odd_forms(world: World, contract: Contract, form: Any) -> None:
    world.connect(SHOP, sync_schedules=form)
    assert form == body_of(contract.connection("k", SHOP))["data"]["sync_schedules"]
    world.connect(
        SHOP, sync_schedules=True, schedule={"last_crawl_end": None, "sync_status": "first_sync_in_progress"}
    )
    told = schedule_of(contract)
    assert (None, "first_sync_in_progress") == (told["last_crawl_end"], told["sync_status"])


def test_the_schedules_may_be_missing(clock: Clock) -> None:
    world = World("k", clock=clock, sync_schedules=False)
    world.connect(SHOP)
    assert "sync_schedules" not in body_of(Contract(world).connection("k", SHOP))["data"]


# -- the list of connections


def test_all_connections_are_listed_a_page_at_a_time(clock: Clock) -> None:
    world = World("k", clock=clock, connections_per_page=2)
    contract = Contract(world)
    for number in range(5):
        world.connect(f"shop-{number}", trackstar_id=f"ts-{number}")
    pages, token = [], ""
    while token is not None:
        page = body_of(contract.connections("k", token))
        pages.append([each["id"] for each in page["data"]])
        token = page["next_token"]
    assert [["ts-0", "ts-1"], ["ts-2", "ts-3"], ["ts-4"]] == pages
    assert 3 == world.connections_lists
    assert 401 == contract.connections("x").status


def test_the_list_may_be_no_endpoint() -> None:
    assert 404 == Contract(World("k", connections_listed=False)).connections("k").status


def test_trackstar_may_call_a_connection_otherwise(world: World, contract: Contract) -> None:
    world.connect(SHOP, trackstar_id="ts-1")
    assert {"ts-1"} == {body_of(contract.connection("k", name))["data"]["id"] for name in ("ts-1", SHOP)}
    assert "ts-1" == body_of(force(contract))["id"]
    with pytest.raises(ValueError, match="no other one has"):
        world.connect("shop-2", trackstar_id="ts-1")
    world.connect(SHOP, trackstar_id="ts-2")
    assert 404 == contract.connection("k", "ts-1").status


# -- a forced crawl


def test_a_forced_crawl_begins_now_and_costs_a_write(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    clock.forward(120)
    world.cancel_by_somebody(SHOP, ORDER)
    assert {"id": SHOP, "syncing": True, "functions_to_sync": ["get_orders"]} == body_of(force(contract))
    began = clock.time
    clock.forward(30)
    force(contract)
    assert began == seconds(schedule_of(contract)["last_crawl_start"])
    assert (2, 0) == (world.traffic(SHOP).writes, world.traffic(SHOP).reads)
    clock.forward(29)
    assert "open" == copy_of(world)
    clock.forward(1)
    assert "cancelled" == copy_of(world)


def test_a_forced_crawl_does_not_move_the_schedule(contract: Contract, clock: Clock) -> None:
    start = clock.time
    for forced, next_one in ((HOUR - 100, HOUR), (2 * HOUR - 30, 3 * HOUR)):
        clock.time = start + forced
        assert 200 == force(contract).status
        clock.time = start + next_one - 1
        assert start + forced == seconds(schedule_of(contract)["last_crawl_start"])
        clock.forward(1)
        assert start + next_one == seconds(schedule_of(contract)["last_crawl_start"])


@pytest.mark.parametrize("status", [404, 405, 422])
def test_a_forced_crawl_may_be_refused(world: World, contract: Contract, status: int) -> None:
    world.connect(SHOP, refuse_sync=status)
    before = schedule_of(contract)
    assert (status, before) == (force(contract).status, schedule_of(contract))
    world.connect(SHOP, refuse_sync=None)
    assert 200 == force(contract).status


@pytest.mark.parametrize("functions", [None, [], "get_orders", ["get_everything"], [["get_orders"]]])
def test_what_cannot_be_synced_is_422(contract: Contract, functions: Any) -> None:
    assert 422 == force(contract, functions).status


def test_a_forced_crawl_needs_both_headers_and_an_enabled_schedule(world: World, contract: Contract) -> None:
    assert 401 == force(contract, caller=Caller("k", None)).status
    assert 422 == end(contract, contract.force_crawl(CALLER, b"not JSON")).status
    world.connect(SHOP, crawl_state="disabled")
    assert 422 == force(contract).status
    world.connect(SHOP, crawl_state="stuck", fault="503")
    assert 503 == force(contract).status
    world.connect(SHOP, fault=None)
    assert (200, True) == (force(contract).status, schedule_of(contract)["in_progress"])


def test_forced_crawls_have_the_budget_of_writes(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=1)
    world.connect(SHOP, access_token="t1")
    assert [200, 429] == [force(Contract(world)).status for _ in range(2)]


def test_a_sync_of_the_world_ends_the_crawl_that_runs_and_counts_as_one(
    world: World, contract: Contract, clock: Clock
) -> None:
    world.add_order(SHOP, ORDER)
    world.connect(SHOP, crawl_state="stuck")
    clock.forward(HOUR + 5)
    world.cancel_by_somebody(SHOP, ORDER, touches=False)
    assert schedule_of(contract)["in_progress"]
    world.sync()
    told = schedule_of(contract)
    assert ("cancelled", False) == (copy_of(world), told["in_progress"])
    assert clock.time == seconds(told["last_crawl_start"]) == seconds(told["last_crawl_end"])


# -- what changed since


def test_what_changed_is_listed_by_the_update_time_of_the_copy(world: World, contract: Contract, clock: Clock) -> None:
    for name in ("a", "b", "c"):
        world.add_order(SHOP, name)
        clock.forward(10)
    since = clock.time
    world.cancel_by_somebody(SHOP, "b")
    assert [] == changed(contract, since)["data"]
    world.sync()
    assert [("b", "cancelled")] == [(each["id"], each["status"]) for each in changed(contract, since)["data"]]
    assert ["c", "b"] == [each["id"] for each in changed(contract, since - 10)["data"]]
    assert (3, 0) == (world.traffic(SHOP).reads, len(world.order(SHOP, "b").truth.reads))


def test_what_changed_comes_in_pages_that_lose_nothing(world: World, contract: Contract, clock: Clock) -> None:
    start, names = clock.time, [f"order-{number:03}" for number in range(250)]
    for name in names:
        world.add_order(SHOP, name)
        clock.forward(int(name[-1] == "7"))
    pages, token = [], ""
    while token is not None:
        page = changed(contract, start, "60", token)
        pages.append([each["id"] for each in page["data"]])
        token = page["next_token"]
        # An order that changes between two pages moves to the end, and hides no other.
        clock.forward(1)
        world.edit(SHOP, names[10])
        world.sync()
    assert [60, 60, 60, 60, 11] == [len(page) for page in pages]
    assert [*names, names[10]] == [name for page in pages for name in page]
    assert 100 == len(changed(contract, start)["data"])
    assert [None, None] == [
        changed(contract, since, limit)["next_token"] for since, limit in ((start, "250"), (0, "1000"))
    ]


@pytest.mark.parametrize(
    ("since", "limit", "token"),
    [("yesterday", "", ""), ("2026-01-01T00:00:00", "", ""), ("", "1001", "x"), ("2026-01-01T00:00:00Z", "0", ""),
     ("2026-01-01T00:00:00Z", "many", ""), ("2026-01-01T00:00:00Z", "", "x")],
)  # fmt: skip
def test_a_list_that_is_asked_for_wrongly_is_422(contract: Contract, since: str, limit: str, token: str) -> None:
    assert 422 == end(contract, contract.read_changed(CALLER, since, limit, token)).status


def test_an_emptied_connection_lists_nothing(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER, script=["open:90"])
    cancel(contract)
    world.edit(SHOP, ORDER)
    world.remove_orders(SHOP)
    world.add_order(SHOP, ORDER)
    clock.forward(MONTH)
    assert ["open"] == [each["status"] for each in changed(contract, 0)["data"]]


# -- looking changes nothing


def arrange(world: World, step: int, dice: random.Random) -> None:
    """Let something happen in the world, as the dice say."""
    order_id, touches = f"order-{dice.randrange(3)}", dice.choice([None, False])
    match dice.randrange(8):
        case 0:
            world.cancel_by_somebody(SHOP, order_id, touches=touches)
        case 1:
            world.edit(SHOP, order_id, {"tags": [step]}, status=dice.choice([None, "open", "picked"]), touches=touches)
        case 2:
            world.connect(SHOP, crawl_state=dice.choice(["enabled", "enabled", "disabled", "stuck", "error"]))
        case 3:
            world.connect(SHOP, crawl_length=dice.choice([0, 7, 25]), sync_seconds=dice.choice([7, 10]))
        case 4:
            world.sync()
        case 5 | 6:
            force(Contract(world))
        case 7:
            world.order(SHOP, order_id).accept("cancelled", dice.randrange(25), touches=touches)


@pytest.mark.parametrize("seed", range(25))
def test_how_often_a_world_is_looked_at_changes_nothing(clock: Clock, seed: int) -> None:
    worlds = [World("k", clock=clock, writes_per_second=None) for _ in range(2)]
    for world in worlds:
        world.connect(SHOP, access_token="t1", sync_seconds=10, crawl_length=3)
        for number in range(3):
            world.add_order(SHOP, f"order-{number}")
    dice = random.Random(seed)
    for step in range(60):
        for _ in range(dice.choice([0, 1, 5, 60])):
            clock.forward(1)
            schedule_of(Contract(worlds[0]))
        told = [schedule_of(Contract(world)) for world in worlds]
        assert told[0] == told[1]
        pictures = [[(order.real, order.copy) for order in world.orders()] for world in worlds]
        assert pictures[0] == pictures[1]
        same = dice.random()
        for world in worlds:
            arrange(world, step, random.Random(same))


# -- for people, and for a month of them


def test_control_arranges_crawls_and_other_people(world: World) -> None:
    wish = {"id": SHOP, "crawl_state": "error", "crawl_length": 5, "sync_seconds": 60, "trackstar_id": "ts-1"}
    made = body_of(control(world, "POST", "connections", wish))
    assert wish == {name: made[name] for name in wish}
    place = {"connection_id": SHOP, "order_id": ORDER}
    control(world, "POST", "orders", place)
    edited = control(world, "POST", "orders/edit", {**place, "status": "picked", "touches": False})
    assert "picked" == body_of(edited)["truth"]["status"]
    assert "cancelled" == body_of(control(world, "POST", "orders/cancel", place))["truth"]["status"]
    for wrong in ({"crawl_state": "asleep"}, {"crawl_length": -1}, {"sync_seconds": -1}):
        assert 400 == control(world, "POST", "connections", {"id": SHOP, **wrong}).status


def test_a_world_has_no_option_that_nobody_reads() -> None:
    with pytest.raises(TypeError, match="crawl_lenght"):
        World("k", crawl_lenght=5)  # type: ignore[call-arg]


def test_a_month_of_many_connections_is_leapt_through(clock: Clock) -> None:
    """Ten thousand orders; for two days one changes each hour and every connection is looked at, then nothing is."""
    world = World("k", clock=clock, reads_per_second=None, crawl_length=120, connections_per_page=1000)
    contract = Contract(world)
    names = [f"order-{number}" for number in range(50)]
    for number in range(200):
        shop = world.connect(f"shop-{number}", crawl_offset=number).id
        for name in names:
            world.add_order(shop, name)
    began = time.process_time()
    for hour in range(48):
        clock.forward(HOUR)
        world.cancel_by_somebody(f"shop-{hour}", names[hour % 50])
        contract.connections("k")
    clock.forward(MONTH)
    assert {"cancelled"} == {world.order(f"shop-{n}", names[n % 50]).truth.copy_status for n in range(48)}
    assert time.process_time() - began < 5
