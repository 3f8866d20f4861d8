"""The sandbox's rules without a socket: what Trackstar promises, the fault script, and the truth that is kept."""

import json
import threading
from typing import Any

import pytest
from unit.sandbox_requests import (
    CALLER,
    HOUR,
    ORDER,
    SHOP,
    Clock,
    body_of,
    cancel,
    control,
    end,
    read,
    refusal,
    status_read,
)

from worker.dev.sandbox import World, parse
from worker.dev.sandbox.contract import Caller, Contract


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    world = World("k", clock=clock, writes_per_second=None, reads_per_second=None)
    world.connect(SHOP, access_token="t1")
    return world


@pytest.fixture
def contract(world: World) -> Contract:
    return Contract(world)


# -- a cancel


def test_a_cancel_answers_the_whole_order_and_changes_it_once(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    body = body_of(cancel(contract))
    assert (ORDER, ORDER, []) == (body["id"], body["data"]["id"], body["unused_fields"])
    assert "cancelled" == body["data"]["status"]
    assert "John Doe" == body["data"]["ship_to_address"]["full_name"]
    assert ("cancelled", 1) == (order.truth.status, order.truth.effective_cancels)


def test_a_second_cancel_is_refused_by_the_warehouse(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    cancel(contract)
    assert (400, "integration") == refusal(cancel(contract))
    assert 1 == order.truth.effective_cancels


@pytest.mark.parametrize("status", ["fulfilled", "partially_fulfilled", None])
def test_an_order_that_has_left_is_not_cancelled(world: World, contract: Contract, status: str | None) -> None:
    order = world.add_order(SHOP, ORDER, status="packed")
    world.ship(SHOP, ORDER, status)
    assert (400, "integration") == refusal(cancel(contract))
    assert 0 == order.truth.effective_cancels


@pytest.mark.parametrize("status", ["open", "confirmed", "processing", "picked", "packed", "backordered", "other"])
def test_an_order_that_has_not_left_is_cancelled(world: World, contract: Contract, status: str) -> None:
    world.add_order(SHOP, ORDER, status=status)
    assert 200 == cancel(contract).status


def test_an_order_that_trackstar_has_not_synced_is_not_found_until_the_next_sync(
    world: World, contract: Contract, clock: Clock
) -> None:
    world.add_order(SHOP, ORDER, synced=False)
    assert (404, "trackstar") == refusal(cancel(contract))
    clock.forward(HOUR)
    assert 200 == cancel(contract).status


def test_an_unknown_order_is_not_found(contract: Contract) -> None:
    assert (404, "trackstar") == refusal(cancel(contract))
    assert (404, "trackstar") == refusal(read(contract))


def test_an_unknown_order_springs_into_being_where_that_is_asked_for() -> None:
    world = World("k", unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    assert 200 == cancel(Contract(world)).status
    assert 1 == world.order(SHOP, ORDER).truth.effective_cancels


@pytest.mark.parametrize("caller", [Caller(None, "t1"), Caller("k", None), Caller("x", "t1"), Caller("k", "x")])
def test_both_headers_are_required(world: World, contract: Contract, caller: Caller) -> None:
    order = world.add_order(SHOP, ORDER)
    for exchange in (contract.cancel(caller, ORDER), contract.read(caller, ORDER)):
        assert (401, "trackstar") == refusal(end(contract, exchange))
    assert () == order.truth.requests
    assert 2 == world.unauthorised


def test_the_same_order_id_of_another_connection_is_another_order(world: World, contract: Contract) -> None:
    world.connect("shop-2", access_token="t2")
    world.add_order(SHOP, ORDER)
    other = world.add_order("shop-2", ORDER)
    cancel(contract)
    assert "open" == other.truth.status


def test_a_new_token_ends_the_old_one(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.connect(SHOP, access_token="t9")
    assert 401 == cancel(contract).status
    assert 200 == end(contract, contract.cancel(Caller("k", "t9"), ORDER)).status


def test_fields_laid_over_the_sample_document_come_back(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, document={"additional_fields": {"gift": True}, "status_note": "new"})
    data = body_of(cancel(contract))["data"]
    assert ({"gift": True}, "new") == (data["additional_fields"], data["status_note"])


# -- the idempotency key


def test_a_success_is_replayed_with_the_first_answer(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER)
    first = cancel(contract, "key")
    clock.forward(24 * HOUR - 1)
    again = cancel(contract, "key")
    assert ("Idempotent-Replayed", "true") in again.headers
    assert ("Idempotent-Replayed", "true") not in first.headers
    assert again.body == first.body
    assert [False, True] == [request.replayed for request in order.truth.requests]
    assert ("key",) == order.truth.keys


def test_a_key_is_forgotten_24_hours_after_its_first_request(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    cancel(contract, "key")
    clock.forward(24 * HOUR)
    assert (400, "integration") == refusal(cancel(contract, "key"))


@pytest.mark.parametrize("step", ["503", "400:integration", "429:2", "html", "empty", "reset", "applied_then:500"])
def test_whatever_is_no_success_releases_the_key(world: World, contract: Contract, step: str) -> None:
    order = world.add_order(SHOP, ORDER, script=[step])
    cancel(contract, "key")
    assert ("Idempotent-Replayed", "true") not in cancel(contract, "key").headers
    assert 1 == order.truth.effective_cancels


def test_a_key_in_use_is_refused_until_its_request_ends(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:5"])
    running = contract.cancel(CALLER, ORDER, "key")
    assert (409, "trackstar") == refusal(cancel(contract, "key"))
    end(contract, running)
    assert 200 == cancel(contract, "key").status
    assert (2, 1) == (order.truth.max_in_flight, order.truth.effective_cancels)


def test_a_client_that_hangs_up_leaves_its_key_in_use(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["hang:60"])
    running = contract.cancel(CALLER, ORDER, "key")
    contract.gone(running)
    assert (0, "client_gone") == (order.truth.in_flight, order.truth.requests[0].end)
    assert (409, "trackstar") == refusal(cancel(contract, "key"))
    contract.finish(running, "hung")
    assert "client_gone" == order.truth.requests[0].end
    assert 200 == cancel(contract, "key").status
    assert 1 == order.truth.max_in_flight


def test_a_key_in_use_for_15_minutes_lets_a_new_write_out(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER, script=["hang:9999"])
    running = contract.cancel(CALLER, ORDER, "key")
    clock.forward(15 * 60 - 1)
    assert 409 == cancel(contract, "key").status
    clock.forward(1)
    assert 200 == cancel(contract, "key").status
    contract.finish(running, "hung")
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


def test_a_key_serves_one_order_and_one_body(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.add_order(SHOP, "order-2")
    cancel(contract, "key")
    assert (400, "trackstar") == refusal(cancel(contract, "key", "order-2"))
    assert (400, "trackstar") == refusal(cancel(contract, "key", body=b"{}"))


def test_a_key_belongs_to_one_connection(world: World, contract: Contract) -> None:
    world.connect("shop-2", access_token="t2")
    world.add_order(SHOP, ORDER)
    world.add_order("shop-2", ORDER)
    cancel(contract, "key")
    other = end(contract, contract.cancel(Caller("k", "t2"), ORDER, "key"))
    assert (200, ()) == (other.status, other.headers)


@pytest.mark.parametrize(("key", "status"), [("", 400), ("k" * 255, 200), ("k" * 256, 400)])
def test_a_key_has_up_to_255_characters(world: World, contract: Contract, key: str, status: int) -> None:
    world.add_order(SHOP, ORDER)
    assert cancel(contract, key).status == status


def test_keys_mean_nothing_where_the_feature_is_off() -> None:
    world = World("k", idempotency=False)
    world.connect(SHOP, access_token="t1")
    world.add_order(SHOP, ORDER)
    contract = Contract(world)
    cancel(contract, "key")
    assert (400, "integration") == refusal(cancel(contract, "key"))
    assert ("key",) == world.order(SHOP, ORDER).truth.keys


def test_the_key_is_looked_at_before_a_step_is_spent(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:1", "503"])
    running = contract.cancel(CALLER, ORDER, "key")
    cancel(contract, "key")
    assert ["503"] == [str(step) for step in order.script]
    end(contract, running)


def test_a_fault_on_the_way_does_not_touch_a_stored_success(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["ok", "503"])
    cancel(contract, "key")
    assert 503 == cancel(contract, "key").status
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


# -- reading


def test_a_read_is_fresh_after_our_own_success(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    cancel(contract)
    assert "cancelled" == status_read(contract)


@pytest.mark.parametrize("step", ["applied_then:500", "applied_then:reset", "applied_then:hang:30"])
def test_a_read_is_old_after_a_cancel_that_trackstar_knows_nothing_of(
    world: World, contract: Contract, clock: Clock, step: str
) -> None:
    order = world.add_order(SHOP, ORDER, script=[step])
    cancel(contract)
    assert ("cancelled", 1) == (order.truth.status, order.truth.effective_cancels)
    clock.forward(HOUR - 1)
    assert "open" == status_read(contract)
    clock.forward(1)
    assert "cancelled" == status_read(contract)


def test_a_sync_shows_the_order_as_it_was_at_that_time(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    clock.forward(HOUR + 1)
    world.ship(SHOP, ORDER)
    assert "open" == status_read(contract)
    clock.forward(HOUR - 1)
    assert "fulfilled" == status_read(contract)


def test_a_sync_can_be_asked_for(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.ship(SHOP, ORDER)
    world.sync()
    data = body_of(read(contract))["data"]
    assert ("fulfilled", "shipped") == (data["status"], data["shipments"][0]["status"])


def test_many_orders_are_read_at_once_and_unknown_ones_are_absent(world: World, contract: Contract) -> None:
    world.add_order(SHOP, "a")
    world.add_order(SHOP, "b")
    reply = end(contract, contract.read_many(CALLER, ["a", "x", "b"]))
    assert ["a", "b"] == [document["id"] for document in body_of(reply)["data"]]


def test_at_most_a_hundred_orders_are_read_at_once(contract: Contract) -> None:
    assert 200 == end(contract, contract.read_many(CALLER, [str(n) for n in range(100)])).status
    assert (400, "trackstar") == refusal(end(contract, contract.read_many(CALLER, [str(n) for n in range(101)])))


def test_reads_have_a_script_of_their_own(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["503"], reads=["500", "missing", "wrong_id"])
    assert [500, 404, 200, 200] == [read(contract).status for _ in range(4)]
    assert [500, 404, 200, 200] == [request.status for request in order.truth.reads]
    assert ["503"] == [str(step) for step in order.script]


def test_a_stale_read_serves_what_the_copy_said_before(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, reads=["stale", "stale:processing", "ok"])
    cancel(contract)
    assert ["open", "processing", "cancelled"] == [status_read(contract) for _ in range(3)]


def test_a_fresh_read_serves_the_warehouse_itself(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["applied_then:504"], reads=["ok", "fresh"])
    cancel(contract)
    assert ["open", "cancelled"] == [status_read(contract) for _ in range(2)]


def test_in_a_read_of_many_a_view_concerns_one_order_and_a_fault_all(world: World, contract: Contract) -> None:
    world.add_order(SHOP, "a", reads=["missing", "503"])
    world.add_order(SHOP, "b", reads=["stale:packed"])
    first = end(contract, contract.read_many(CALLER, ["a", "b"]))
    assert ["packed"] == [document["status"] for document in body_of(first)["data"]]
    assert 503 == end(contract, contract.read_many(CALLER, ["a", "b"])).status


# -- the fault script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("503", (503, {"error": "As the script says.", "origin": "trackstar"}, None)),
        ("400:integration", (400, {"error": "As the script says.", "origin": "integration"}, None)),
        ("404:none", (404, {"error": "As the script says."}, None)),
        ("418:proxy", (418, {"error": "As the script says.", "origin": "proxy"}, None)),
        ("429:2", (429, {"error": "As the script says.", "origin": "trackstar"}, "2")),
        ("503:integration:0.5", (503, {"error": "As the script says.", "origin": "integration"}, "0.5")),
        ("429:none:soon", (429, {"error": "As the script says."}, "soon")),
        ("list", (200, [], None)),
        ("list:500", (500, [], None)),
        ("599", (599, {"error": "As the script says.", "origin": "trackstar"}, None)),
        ("202", (202, {"message": "As the script says."}, None)),
    ],
)
def test_a_scripted_answer_is_given_as_it_is_written(
    world: World, contract: Contract, text: str, expected: tuple[int, Any, str | None]
) -> None:
    order = world.add_order(SHOP, ORDER, script=[text])
    reply = cancel(contract)
    assert (reply.status, body_of(reply), dict(reply.headers).get("retry-after")) == expected
    assert 0 == order.truth.effective_cancels
    assert order.truth.requests[0].step == text


def test_html_and_an_empty_body_are_not_json(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["html", "html:503", "empty", "empty:504"])
    answers = [cancel(contract) for _ in range(4)]
    assert [502, 503, 200, 504] == [reply.status for reply in answers]
    assert ["text/html", "text/html"] == [reply.content_type for reply in answers[:2]]
    assert [b"", b""] == [reply.body for reply in answers[2:]]


def test_a_redirect_says_where_to(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["redirect:http://127.0.0.1:9/a+b"])
    reply = cancel(contract)
    assert (302, "http://127.0.0.1:9/a+b") == (reply.status, dict(reply.headers)["Location"])


@pytest.mark.parametrize(
    ("step", "inner", "outer"),
    [("wrong_id", False, False), ("wrong_id:data", False, True), ("wrong_id:outer", True, False)],
)
def test_a_success_may_tell_of_another_order(
    world: World, contract: Contract, step: str, inner: bool, outer: bool
) -> None:
    order = world.add_order(SHOP, ORDER, script=[step])
    body = body_of(cancel(contract))
    assert (body["data"]["id"] == ORDER, body["id"] == ORDER) == (inner, outer)
    assert 1 == order.truth.effective_cancels


def test_a_huge_answer_has_the_size_asked_for(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["huge:100000"])
    reply = cancel(contract)
    assert 100_000 == len(reply.body)
    assert "cancelled" == body_of(reply)["data"]["status"]


def test_an_accepted_cancel_happens_when_the_test_says_so(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["open"])
    assert "open" == body_of(cancel(contract, "key"))["data"]["status"]
    clock.forward(30 * 24 * HOUR)
    assert "open" == order.truth.status
    world.settle(SHOP, ORDER)
    assert ("cancelled", "open") == (order.truth.status, order.truth.copy_status)
    assert 1 == order.truth.effective_cancels


def test_an_accepted_cancel_may_happen_by_itself_later(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["open:90"])
    cancel(contract)
    clock.forward(89)
    assert "open" == order.truth.status
    clock.forward(1)
    assert ("cancelled", "open") == (order.truth.status, order.truth.copy_status)
    clock.forward(HOUR)
    assert "cancelled" == order.truth.copy_status


def test_an_accepted_order_may_ship_instead(world: World, contract: Contract, clock: Clock) -> None:
    at_once = world.add_order(SHOP, "a", script=["open:ship"])
    later = world.add_order(SHOP, "b", script=["open:ship:60"])
    assert "open" == body_of(cancel(contract, order_id="a"))["data"]["status"]
    cancel(contract, order_id="b")
    assert ["fulfilled", "open"] == [at_once.truth.status, later.truth.status]
    clock.forward(60)
    assert ["open", "fulfilled"] == [at_once.truth.copy_status, later.truth.status]
    assert [0, 0] == [at_once.truth.effective_cancels, later.truth.effective_cancels]


def test_a_success_that_is_lost_on_its_way_is_stored_and_replayed(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["succeeded_then:503"])
    assert 503 == cancel(contract, "key").status
    assert "cancelled" == status_read(contract)
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers
    assert 1 == order.truth.effective_cancels


def test_a_connection_may_fail_as_a_whole_until_it_is_mended(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["500"])
    world.connect(SHOP, fault="401:integration")
    assert [401, 401] == [cancel(contract).status, read(contract).status]
    world.connect(SHOP, fault=None)
    assert [500, 200] == [cancel(contract).status, cancel(contract).status]
    assert 1 == order.truth.effective_cancels


@pytest.mark.parametrize(
    "text",
    ["ok", "503:none:2", "slow:0.5", "pause", "pause_applied+applied_then:500", "slow:1+pause+hang:3",
     "succeeded_then:reset", "applied_then:cut", "drip:0.1", "drip_head:0.1", "open:ship:4", "close",
     "open:ship:4:untouched"],
)  # fmt: skip
def test_a_step_is_written_as_it_was_read(text: str) -> None:
    assert str(parse(text)) == text


def test_holds_stand_before_any_answer() -> None:
    step = parse("slow:2+pause_applied+applied_then:429:7")
    assert (2, "after", "applied", 429, "7") == (step.slow, step.pause, step.effect, step.status, step.retry_after)


@pytest.mark.parametrize(
    "text",
    ["", "teapot", "99", "600", "100", "hang", "hang:", "hang:long", "hang:-1", "hang:nan", "slow:x", "huge",
     "interim", "interim:200", "interim:103:x", "trailed:x", "coded", "coded:x", "shown:x", "bare:x",
     "huge:-1", "html:abc", "reset:1", "pause:2", "open:sometimes", "open:shipped", "wrong_id:x", "applied_then:",
     "open:4:ship", "open:untouched:4", "ok+503"],
)  # fmt: skip
def test_a_word_that_means_nothing_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no step"):
        parse(text)


def test_a_script_is_refused_where_it_makes_no_sense(world: World) -> None:
    with pytest.raises(ValueError, match="no step for a read"):
        world.add_order(SHOP, ORDER, reads=["open"])
    with pytest.raises(ValueError, match="no step for a cancel"):
        world.add_order(SHOP, ORDER, script=["stale"])
    with pytest.raises(ValueError, match="a read cannot"):
        world.add_order(SHOP, ORDER, reads=["applied_then:500"])
    with pytest.raises(TypeError, match="list of steps"):
        world.add_order(SHOP, ORDER, script="503")
    assert [] == world.orders()


# -- limits


def test_the_limit_counts_a_sliding_second(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=2, reads_per_second=1, unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    contract = Contract(world)
    statuses = []
    for pause in (0.0, 0.9, 0.05, 0.05, 0.05, 0.9):
        clock.forward(pause)
        statuses.append(cancel(contract, order_id=str(clock.time)).status)
    assert [200, 200, 429, 200, 429, 200] == statuses
    traffic = world.traffic(SHOP)
    assert (6, 2, 4, 0) == (traffic.writes, traffic.writes_refused, traffic.peak_writes, traffic.reads)


def test_answers_tell_what_is_left_of_the_budget(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=2, reads_per_second=1, unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    contract = Contract(world)
    first, _, refused = (dict(cancel(contract, order_id=name).headers) for name in "abc")
    assert first == {
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": str(int(clock.time) + 1),
    }
    assert ("1", "0") == (refused["retry-after"], refused["x-ratelimit-remaining"])


def test_reads_and_writes_and_tokens_have_budgets_of_their_own(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=1, reads_per_second=1, unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    world.connect("shop-2", access_token="t2", reads_per_second=None)
    contract = Contract(world)
    assert [200, 200, 429] == [cancel(contract).status, read(contract).status, read(contract).status]
    other = [end(contract, contract.read(Caller("k", "t2"), ORDER)).status for _ in range(20)]
    assert other == [200] * 20
    assert (1, 20) == (world.traffic(SHOP).reads_refused, world.traffic("shop-2").peak_reads)


def test_a_refused_write_spends_no_step_and_is_kept_in_the_truth(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=0)
    world.connect(SHOP, access_token="t1")
    order = world.add_order(SHOP, ORDER, script=["503"])
    assert 429 == cancel(Contract(world), "key").status
    assert ["503"] == [str(step) for step in order.script]
    assert [("key", 429)] == [(request.key, request.status) for request in order.truth.cancels]


# -- the truth, waiting and releasing


def test_every_request_is_kept_with_its_times_and_its_end(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:1"])
    running = contract.cancel(CALLER, ORDER, "key")
    assert (1, None) == (order.truth.in_flight, order.truth.requests[0].ended)
    arrived = clock.time
    clock.forward(1)
    end(contract, running)
    (request,) = order.truth.requests
    assert (request.kind, request.arrived, request.ended) == ("cancel", arrived, arrived + 1)
    assert ("key", 200, "answered", "slow:1") == (request.key, request.status, request.end, request.step)
    assert 0 == order.truth.in_flight


def test_the_truth_is_a_picture_that_does_not_change(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    before = order.truth
    cancel(contract)
    assert ("open", ()) == (before.status, before.requests)


def test_a_wait_ends_when_the_request_arrives(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    sender = threading.Thread(target=cancel, args=(contract, "key"))
    sender.start()
    assert "key" == world.wait_for_request(SHOP, ORDER).key
    sender.join()


def test_a_wait_in_vain_says_what_for(world: World) -> None:
    with pytest.raises(TimeoutError, match="cancel number 1 of 'order-1'"):
        world.wait_for_request(SHOP, ORDER, timeout=0)


def test_a_pause_is_over_when_it_is_released(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["pause"])
    exchange = contract.cancel(CALLER, ORDER)
    woken = threading.Event()
    assert contract.hold(exchange, woken.set)
    world.wait_for_pause(SHOP, ORDER, timeout=0)
    assert 1 == world.release(SHOP, ORDER)
    assert woken.is_set()
    assert 0 == world.release(SHOP, ORDER)
    assert 200 == end(contract, exchange).status


def test_a_pause_may_be_released_before_it_is_reached(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["pause_applied"])
    exchange = contract.cancel(CALLER, ORDER)
    assert 1 == world.release(SHOP, ORDER)
    assert not contract.hold(exchange, lambda: None)


def test_while_an_applied_pause_lasts_the_key_is_in_use_and_the_copy_old(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["pause_applied"])
    exchange = contract.cancel(CALLER, ORDER, "key")
    contract.act(exchange)
    assert ("cancelled", "open") == (order.truth.status, status_read(contract))
    assert 409 == cancel(contract, "key").status
    end(contract, exchange)
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


# -- connections and control


def test_a_connection_is_described_to_the_api_key_alone(world: World, contract: Contract) -> None:
    about = {"integration_name": "shiphero", "available_actions": ["get_orders"], "errors": ["broken"]}
    world.connect(SHOP, sync_schedules=False, **about)
    assert {
        "data": {
            "id": SHOP,
            "integration_name": "shiphero",
            "available_actions": ["get_orders"],
            "errors": ["broken"],
        }
    } == body_of(contract.connection("k", SHOP))
    assert 401 == contract.connection("x", SHOP).status
    assert (404, "trackstar") == refusal(contract.connection("k", "shop-9"))


def test_a_connection_may_come_as_a_list_of_one() -> None:
    world = World("k", connections_as_list=True)
    world.connect(SHOP)
    (data,) = body_of(Contract(world).connection("k", SHOP))["data"]
    assert (SHOP, True) == (data["id"], "cancel_order" in data["available_actions"])


def test_the_sandbox_of_trackstar_is_made_once_and_emptied_after(world: World, contract: Contract) -> None:
    made = body_of(contract.generate("k"))
    caller = Caller("k", made["access_token"])
    assert 200 == end(contract, contract.cancel(caller, "sandbox-order-1")).status
    assert body_of(contract.generate("k")) == made
    assert "open" == world.order(made["connection_id"], "sandbox-order-1").truth.status
    assert 401 == contract.generate("x").status


def test_a_link_to_mend_a_connection_is_made_for_the_api_key_alone(world: World, contract: Contract) -> None:
    world.connect("shop-7", trackstar_id="conn/7")
    made = [contract.magic_link("k", json.dumps({"connection_id": each}).encode()) for each in ("shop-7", "conn/7")]
    assert {"https://link.sandbox.invalid/conn%2F7"} == {body_of(each)["data"]["url"] for each in made}
    assert 401 == contract.magic_link("x", b'{"connection_id": "shop-7"}').status
    assert (404, "trackstar") == refusal(contract.magic_link("k", b'{"connection_id": "shop-9"}'))
    odd = (b"", b"[]", b"{}", b"\xff", b'"shop-7"')
    assert [422] * 5 == [contract.magic_link("k", body).status for body in odd]
    assert 404 == contract.magic_link("k", b'{"connection_id": 7}').status


def test_control_makes_and_alters_orders_and_tells_the_truth(world: World, contract: Contract) -> None:
    place = {"connection_id": SHOP, "order_id": ORDER}
    assert 200 == control(world, "POST", "orders", {**place, "script": ["503"]}).status
    cancel(contract)
    told = body_of(control(world, "POST", "orders", {**place, "status": "packed", "reads": ["500"]}))
    assert ("packed", ["500"], []) == (told["truth"]["status"], told["reads"], told["script"])
    assert 503 == told["truth"]["requests"][0]["status"]
    assert body_of(control(world, "GET", "orders", **place)) == told
    assert body_of(control(world, "GET", "orders")) == [told]
    assert 1 == body_of(control(world, "POST", "sync"))["synced"]
    assert "fulfilled" == body_of(control(world, "POST", "orders/ship", place))["truth"]["status"]
    assert {"released": 0} == body_of(control(world, "POST", "orders/release", place))
    assert "packed" == body_of(control(world, "POST", "orders/settle", place))["truth"]["copy_status"]


def test_control_makes_connections_and_counts_their_traffic(world: World, contract: Contract) -> None:
    wish = {"id": "shop-2", "access_token": "t2", "writes_per_second": None, "fault": "503"}
    made = body_of(control(world, "POST", "connections", wish))
    assert ("t2", None, "503") == (made["access_token"], made["writes_per_second"], made["fault"])
    end(contract, contract.cancel(Caller("k", "t2"), ORDER))
    told = body_of(control(world, "GET", "connections"))
    assert [0, 1] == [each["traffic"]["writes"] for each in told]
    assert 2 == body_of(control(world, "GET", ""))["connections"]


@pytest.mark.parametrize(
    ("path", "wish"),
    [
        ("orders", {"connection_id": SHOP}),
        ("orders", {"connection_id": SHOP, "order_id": 7}),
        ("orders", {"connection_id": SHOP, "order_id": ORDER, "scirpt": []}),
        ("orders", {"connection_id": SHOP, "order_id": ORDER, "script": ["teapot"]}),
        ("orders", {"connection_id": "shop-9", "order_id": ORDER}),
        ("orders/ship", {"connection_id": SHOP, "order_id": "none"}),
        ("connections", {"id": ""}),
        ("connections", {"id": "shop-2", "access_token": "t1"}),
        ("connections", {"id": "shop-2", "fault": "teapot"}),
        ("sync", []),
    ],
)
def test_wrong_control_input_is_refused_with_one_sentence_and_changes_nothing(
    world: World, path: str, wish: Any
) -> None:
    reply = control(world, "POST", path, wish)
    assert (400, "sandbox") == (reply.status, body_of(reply)["origin"])
    assert len(body_of(reply)["error"]) > 10
    assert (1, 0) == (len(world.connections()), len(world.orders()))


def test_an_unknown_control_endpoint_lists_the_known_ones(world: World) -> None:
    reply = control(world, "POST", "nonsense")
    assert 404 == reply.status
    assert "POST /_sandbox/orders/release" in body_of(reply)["error"]
