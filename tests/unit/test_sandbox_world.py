"""The sandbox's rules without a socket: what Trackstar promises, the fault script, and the truth that is kept."""

import json
import threading
from typing import Any

import pytest

from worker.trackstar.sandbox import World, parse
from worker.trackstar.sandbox.contract import Caller, Contract
from worker.trackstar.sandbox.control import handle
from worker.trackstar.sandbox.replies import Reply
from worker.trackstar.sandbox.world import Exchange

SHOP = "shop-1"
ORDER = "order-1"
CALLER = Caller("k", "t1")
HOUR = 3600


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds


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


def end(contract: Contract, exchange: Exchange) -> Reply:
    reply = contract.answer(exchange)
    contract.finish(exchange, "answered", reply.status)
    return reply


def cancel(contract: Contract, key: str | None = None, order_id: str = ORDER, body: bytes = b"") -> Reply:
    return end(contract, contract.cancel(CALLER, order_id, key, body))


def read(contract: Contract, order_id: str = ORDER) -> Reply:
    return end(contract, contract.read(CALLER, order_id))


def status_read(contract: Contract) -> str:
    return str(body_of(read(contract))["data"]["status"])


def body_of(reply: Reply) -> Any:
    return json.loads(reply.body)


def refusal(reply: Reply) -> tuple[int, str]:
    return reply.status, body_of(reply)["origin"]


# -- a cancel


def test_a_cancel_answers_the_whole_order_and_changes_it_once(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    body = body_of(cancel(contract))
    assert (body["id"], body["data"]["id"], body["unused_fields"]) == (ORDER, ORDER, [])
    assert body["data"]["status"] == "cancelled"
    assert body["data"]["ship_to_address"]["full_name"] == "John Doe"
    assert (order.truth.status, order.truth.effective_cancels) == ("cancelled", 1)


def test_a_second_cancel_is_refused_by_the_warehouse(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    cancel(contract)
    assert refusal(cancel(contract)) == (400, "integration")
    assert order.truth.effective_cancels == 1


@pytest.mark.parametrize("status", ["fulfilled", "partially_fulfilled", None])
def test_an_order_that_has_left_is_not_cancelled(world: World, contract: Contract, status: str | None) -> None:
    order = world.add_order(SHOP, ORDER, status="packed")
    world.ship(SHOP, ORDER, status)
    assert refusal(cancel(contract)) == (400, "integration")
    assert order.truth.effective_cancels == 0


@pytest.mark.parametrize("status", ["open", "confirmed", "processing", "picked", "packed", "backordered", "other"])
def test_an_order_that_has_not_left_is_cancelled(world: World, contract: Contract, status: str) -> None:
    world.add_order(SHOP, ORDER, status=status)
    assert cancel(contract).status == 200


def test_an_order_that_trackstar_has_not_synced_is_not_found_until_the_next_sync(
    world: World, contract: Contract, clock: Clock
) -> None:
    world.add_order(SHOP, ORDER, synced=False)
    assert refusal(cancel(contract)) == (404, "trackstar")
    clock.forward(HOUR)
    assert cancel(contract).status == 200


def test_an_unknown_order_is_not_found(contract: Contract) -> None:
    assert refusal(cancel(contract)) == (404, "trackstar")
    assert refusal(read(contract)) == (404, "trackstar")


def test_an_unknown_order_springs_into_being_where_that_is_asked_for() -> None:
    world = World("k", unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    assert cancel(Contract(world)).status == 200
    assert world.order(SHOP, ORDER).truth.effective_cancels == 1


@pytest.mark.parametrize("caller", [Caller(None, "t1"), Caller("k", None), Caller("x", "t1"), Caller("k", "x")])
def test_both_headers_are_required(world: World, contract: Contract, caller: Caller) -> None:
    order = world.add_order(SHOP, ORDER)
    for exchange in (contract.cancel(caller, ORDER), contract.read(caller, ORDER)):
        assert refusal(end(contract, exchange)) == (401, "trackstar")
    assert order.truth.requests == ()
    assert world.unauthorised == 2


def test_the_same_order_id_of_another_connection_is_another_order(world: World, contract: Contract) -> None:
    world.connect("shop-2", access_token="t2")
    world.add_order(SHOP, ORDER)
    other = world.add_order("shop-2", ORDER)
    cancel(contract)
    assert other.truth.status == "open"


def test_a_new_token_ends_the_old_one(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.connect(SHOP, access_token="t9")
    assert cancel(contract).status == 401
    assert end(contract, contract.cancel(Caller("k", "t9"), ORDER)).status == 200


def test_fields_laid_over_the_sample_document_come_back(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, document={"additional_fields": {"gift": True}, "status_note": "new"})
    data = body_of(cancel(contract))["data"]
    assert (data["additional_fields"], data["status_note"]) == ({"gift": True}, "new")


# -- the idempotency key


def test_a_success_is_replayed_with_the_first_answer(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER)
    first = cancel(contract, "key")
    clock.forward(24 * HOUR - 1)
    again = cancel(contract, "key")
    assert ("Idempotent-Replayed", "true") in again.headers
    assert ("Idempotent-Replayed", "true") not in first.headers
    assert again.body == first.body
    assert [request.replayed for request in order.truth.requests] == [False, True]
    assert order.truth.keys == ("key",)


def test_a_key_is_forgotten_24_hours_after_its_first_request(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    cancel(contract, "key")
    clock.forward(24 * HOUR)
    assert refusal(cancel(contract, "key")) == (400, "integration")


@pytest.mark.parametrize("step", ["503", "400:integration", "429:2", "html", "empty", "reset", "applied_then:500"])
def test_whatever_is_no_success_releases_the_key(world: World, contract: Contract, step: str) -> None:
    order = world.add_order(SHOP, ORDER, script=[step])
    cancel(contract, "key")
    assert ("Idempotent-Replayed", "true") not in cancel(contract, "key").headers
    assert order.truth.effective_cancels == 1


def test_a_key_in_use_is_refused_until_its_request_ends(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:5"])
    running = contract.cancel(CALLER, ORDER, "key")
    assert refusal(cancel(contract, "key")) == (409, "trackstar")
    end(contract, running)
    assert cancel(contract, "key").status == 200
    assert (order.truth.max_in_flight, order.truth.effective_cancels) == (2, 1)


def test_a_client_that_hangs_up_leaves_its_key_in_use(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["hang:60"])
    running = contract.cancel(CALLER, ORDER, "key")
    contract.gone(running)
    assert (order.truth.in_flight, order.truth.requests[0].end) == (0, "client_gone")
    assert refusal(cancel(contract, "key")) == (409, "trackstar")
    contract.finish(running, "hung")
    assert order.truth.requests[0].end == "client_gone"
    assert cancel(contract, "key").status == 200
    assert order.truth.max_in_flight == 1


def test_a_key_in_use_for_15_minutes_lets_a_new_write_out(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER, script=["hang:9999"])
    running = contract.cancel(CALLER, ORDER, "key")
    clock.forward(15 * 60 - 1)
    assert cancel(contract, "key").status == 409
    clock.forward(1)
    assert cancel(contract, "key").status == 200
    contract.finish(running, "hung")
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


def test_a_key_serves_one_order_and_one_body(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.add_order(SHOP, "order-2")
    cancel(contract, "key")
    assert refusal(cancel(contract, "key", "order-2")) == (400, "trackstar")
    assert refusal(cancel(contract, "key", body=b"{}")) == (400, "trackstar")


def test_a_key_belongs_to_one_connection(world: World, contract: Contract) -> None:
    world.connect("shop-2", access_token="t2")
    world.add_order(SHOP, ORDER)
    world.add_order("shop-2", ORDER)
    cancel(contract, "key")
    other = end(contract, contract.cancel(Caller("k", "t2"), ORDER, "key"))
    assert (other.status, other.headers) == (200, ())


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
    assert refusal(cancel(contract, "key")) == (400, "integration")
    assert world.order(SHOP, ORDER).truth.keys == ("key",)


def test_the_key_is_looked_at_before_a_step_is_spent(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:1", "503"])
    running = contract.cancel(CALLER, ORDER, "key")
    cancel(contract, "key")
    assert [str(step) for step in order.script] == ["503"]
    end(contract, running)


def test_a_fault_on_the_way_does_not_touch_a_stored_success(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["ok", "503"])
    cancel(contract, "key")
    assert cancel(contract, "key").status == 503
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


# -- reading


def test_a_read_is_fresh_after_our_own_success(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    cancel(contract)
    assert status_read(contract) == "cancelled"


@pytest.mark.parametrize("step", ["applied_then:500", "applied_then:reset", "applied_then:hang:30"])
def test_a_read_is_old_after_a_cancel_that_trackstar_knows_nothing_of(
    world: World, contract: Contract, clock: Clock, step: str
) -> None:
    order = world.add_order(SHOP, ORDER, script=[step])
    cancel(contract)
    assert (order.truth.status, order.truth.effective_cancels) == ("cancelled", 1)
    clock.forward(HOUR - 1)
    assert status_read(contract) == "open"
    clock.forward(1)
    assert status_read(contract) == "cancelled"


def test_a_sync_shows_the_order_as_it_was_at_that_time(world: World, contract: Contract, clock: Clock) -> None:
    world.add_order(SHOP, ORDER)
    clock.forward(HOUR + 1)
    world.ship(SHOP, ORDER)
    assert status_read(contract) == "open"
    clock.forward(HOUR - 1)
    assert status_read(contract) == "fulfilled"


def test_a_sync_can_be_asked_for(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    world.ship(SHOP, ORDER)
    world.sync()
    data = body_of(read(contract))["data"]
    assert (data["status"], data["shipments"][0]["status"]) == ("fulfilled", "shipped")


def test_many_orders_are_read_at_once_and_unknown_ones_are_absent(world: World, contract: Contract) -> None:
    world.add_order(SHOP, "a")
    world.add_order(SHOP, "b")
    reply = end(contract, contract.read_many(CALLER, ["a", "x", "b"]))
    assert [document["id"] for document in body_of(reply)["data"]] == ["a", "b"]


def test_at_most_a_hundred_orders_are_read_at_once(contract: Contract) -> None:
    assert end(contract, contract.read_many(CALLER, [str(n) for n in range(100)])).status == 200
    assert refusal(end(contract, contract.read_many(CALLER, [str(n) for n in range(101)]))) == (400, "trackstar")


def test_reads_have_a_script_of_their_own(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["503"], reads=["500", "missing", "wrong_id"])
    assert [read(contract).status for _ in range(4)] == [500, 404, 200, 200]
    assert [request.status for request in order.truth.reads] == [500, 404, 200, 200]
    assert [str(step) for step in order.script] == ["503"]


def test_a_stale_read_serves_what_the_copy_said_before(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, reads=["stale", "stale:processing", "ok"])
    cancel(contract)
    assert [status_read(contract) for _ in range(3)] == ["open", "processing", "cancelled"]


def test_a_fresh_read_serves_the_warehouse_itself(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["applied_then:504"], reads=["ok", "fresh"])
    cancel(contract)
    assert [status_read(contract) for _ in range(2)] == ["open", "cancelled"]


def test_in_a_read_of_many_a_view_concerns_one_order_and_a_fault_all(world: World, contract: Contract) -> None:
    world.add_order(SHOP, "a", reads=["missing", "503"])
    world.add_order(SHOP, "b", reads=["stale:packed"])
    first = end(contract, contract.read_many(CALLER, ["a", "b"]))
    assert [document["status"] for document in body_of(first)["data"]] == ["packed"]
    assert end(contract, contract.read_many(CALLER, ["a", "b"])).status == 503


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
    assert order.truth.effective_cancels == 0
    assert order.truth.requests[0].step == text


def test_html_and_an_empty_body_are_not_json(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["html", "html:503", "empty", "empty:504"])
    answers = [cancel(contract) for _ in range(4)]
    assert [reply.status for reply in answers] == [502, 503, 200, 504]
    assert [reply.content_type for reply in answers[:2]] == ["text/html", "text/html"]
    assert [reply.body for reply in answers[2:]] == [b"", b""]


def test_a_redirect_says_where_to(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["redirect:http://127.0.0.1:9/a+b"])
    reply = cancel(contract)
    assert (reply.status, dict(reply.headers)["Location"]) == (302, "http://127.0.0.1:9/a+b")


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
    assert order.truth.effective_cancels == 1


def test_a_huge_answer_has_the_size_asked_for(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["huge:100000"])
    reply = cancel(contract)
    assert len(reply.body) == 100_000
    assert body_of(reply)["data"]["status"] == "cancelled"


def test_an_accepted_cancel_happens_when_the_test_says_so(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["open"])
    assert body_of(cancel(contract, "key"))["data"]["status"] == "open"
    clock.forward(30 * 24 * HOUR)
    assert order.truth.status == "open"
    world.settle(SHOP, ORDER)
    assert (order.truth.status, order.truth.copy_status) == ("cancelled", "open")
    assert order.truth.effective_cancels == 1


def test_an_accepted_cancel_may_happen_by_itself_later(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["open:90"])
    cancel(contract)
    clock.forward(89)
    assert order.truth.status == "open"
    clock.forward(1)
    assert (order.truth.status, order.truth.copy_status) == ("cancelled", "open")
    clock.forward(HOUR)
    assert order.truth.copy_status == "cancelled"


def test_an_accepted_order_may_ship_instead(world: World, contract: Contract, clock: Clock) -> None:
    at_once = world.add_order(SHOP, "a", script=["open:ship"])
    later = world.add_order(SHOP, "b", script=["open:ship:60"])
    assert body_of(cancel(contract, order_id="a"))["data"]["status"] == "open"
    cancel(contract, order_id="b")
    assert [at_once.truth.status, later.truth.status] == ["fulfilled", "open"]
    clock.forward(60)
    assert [at_once.truth.copy_status, later.truth.status] == ["open", "fulfilled"]
    assert [at_once.truth.effective_cancels, later.truth.effective_cancels] == [0, 0]


def test_a_success_that_is_lost_on_its_way_is_stored_and_replayed(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["succeeded_then:503"])
    assert cancel(contract, "key").status == 503
    assert status_read(contract) == "cancelled"
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers
    assert order.truth.effective_cancels == 1


def test_a_connection_may_fail_as_a_whole_until_it_is_mended(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["500"])
    world.connect(SHOP, fault="401:integration")
    assert [cancel(contract).status, read(contract).status] == [401, 401]
    world.connect(SHOP, fault=None)
    assert [cancel(contract).status, cancel(contract).status] == [500, 200]
    assert order.truth.effective_cancels == 1


@pytest.mark.parametrize(
    "text",
    ["ok", "503:none:2", "slow:0.5", "pause", "pause_applied+applied_then:500", "slow:1+pause+hang:3",
     "succeeded_then:reset", "applied_then:cut", "drip:0.1", "drip_head:0.1", "open:ship:4", "close"],
)  # fmt: skip
def test_a_step_is_written_as_it_was_read(text: str) -> None:
    assert str(parse(text)) == text


def test_holds_stand_before_any_answer() -> None:
    step = parse("slow:2+pause_applied+applied_then:429:7")
    assert (step.slow, step.pause, step.effect, step.status, step.retry_after) == (2, "after", "applied", 429, "7")


@pytest.mark.parametrize(
    "text",
    ["", "teapot", "99", "600", "100", "hang", "hang:", "hang:long", "hang:-1", "hang:nan", "slow:x", "huge",
     "huge:-1", "html:abc", "reset:1", "pause:2", "open:sometimes", "open:shipped", "wrong_id:x", "applied_then:",
     "ok+503"],
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
    assert world.orders() == []


# -- limits


def test_the_limit_counts_a_sliding_second(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=2, reads_per_second=1, unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    contract = Contract(world)
    statuses = []
    for pause in (0.0, 0.9, 0.05, 0.05, 0.05, 0.9):
        clock.forward(pause)
        statuses.append(cancel(contract, order_id=str(clock.time)).status)
    assert statuses == [200, 200, 429, 200, 429, 200]
    traffic = world.traffic(SHOP)
    assert (traffic.writes, traffic.writes_refused, traffic.peak_writes, traffic.reads) == (6, 2, 4, 0)


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
    assert (refused["retry-after"], refused["x-ratelimit-remaining"]) == ("1", "0")


def test_reads_and_writes_and_tokens_have_budgets_of_their_own(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=1, reads_per_second=1, unknown_orders="open")
    world.connect(SHOP, access_token="t1")
    world.connect("shop-2", access_token="t2", reads_per_second=None)
    contract = Contract(world)
    assert [cancel(contract).status, read(contract).status, read(contract).status] == [200, 200, 429]
    other = [end(contract, contract.read(Caller("k", "t2"), ORDER)).status for _ in range(20)]
    assert other == [200] * 20
    assert (world.traffic(SHOP).reads_refused, world.traffic("shop-2").peak_reads) == (1, 20)


def test_a_refused_write_spends_no_step_and_is_kept_in_the_truth(clock: Clock) -> None:
    world = World("k", clock=clock, writes_per_second=0)
    world.connect(SHOP, access_token="t1")
    order = world.add_order(SHOP, ORDER, script=["503"])
    assert cancel(Contract(world), "key").status == 429
    assert [str(step) for step in order.script] == ["503"]
    assert [(request.key, request.status) for request in order.truth.cancels] == [("key", 429)]


# -- the truth, waiting and releasing


def test_every_request_is_kept_with_its_times_and_its_end(world: World, contract: Contract, clock: Clock) -> None:
    order = world.add_order(SHOP, ORDER, script=["slow:1"])
    running = contract.cancel(CALLER, ORDER, "key")
    assert (order.truth.in_flight, order.truth.requests[0].ended) == (1, None)
    arrived = clock.time
    clock.forward(1)
    end(contract, running)
    (request,) = order.truth.requests
    assert (request.kind, request.arrived, request.ended) == ("cancel", arrived, arrived + 1)
    assert (request.key, request.status, request.end, request.step) == ("key", 200, "answered", "slow:1")
    assert order.truth.in_flight == 0


def test_the_truth_is_a_picture_that_does_not_change(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER)
    before = order.truth
    cancel(contract)
    assert (before.status, before.requests) == ("open", ())


def test_a_wait_ends_when_the_request_arrives(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER)
    sender = threading.Thread(target=cancel, args=(contract, "key"))
    sender.start()
    assert world.wait_for_request(SHOP, ORDER).key == "key"
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
    assert world.release(SHOP, ORDER) == 1
    assert woken.is_set()
    assert world.release(SHOP, ORDER) == 0
    assert end(contract, exchange).status == 200


def test_a_pause_may_be_released_before_it_is_reached(world: World, contract: Contract) -> None:
    world.add_order(SHOP, ORDER, script=["pause_applied"])
    exchange = contract.cancel(CALLER, ORDER)
    assert world.release(SHOP, ORDER) == 1
    assert not contract.hold(exchange, lambda: None)


def test_while_an_applied_pause_lasts_the_key_is_in_use_and_the_copy_old(world: World, contract: Contract) -> None:
    order = world.add_order(SHOP, ORDER, script=["pause_applied"])
    exchange = contract.cancel(CALLER, ORDER, "key")
    contract.act(exchange)
    assert (order.truth.status, status_read(contract)) == ("cancelled", "open")
    assert cancel(contract, "key").status == 409
    end(contract, exchange)
    assert ("Idempotent-Replayed", "true") in cancel(contract, "key").headers


# -- connections and control


def test_a_connection_is_described_to_the_api_key_alone(world: World, contract: Contract) -> None:
    world.connect(SHOP, integration_name="shiphero", available_actions=["get_orders"], errors=["broken"])
    assert body_of(contract.connection("k", SHOP)) == {
        "data": {
            "id": SHOP,
            "integration_name": "shiphero",
            "available_actions": ["get_orders"],
            "errors": ["broken"],
        }
    }
    assert contract.connection("x", SHOP).status == 401
    assert refusal(contract.connection("k", "shop-9")) == (404, "trackstar")


def test_a_connection_may_come_as_a_list_of_one() -> None:
    world = World("k", connections_as_list=True)
    world.connect(SHOP)
    (data,) = body_of(Contract(world).connection("k", SHOP))["data"]
    assert (data["id"], "cancel_order" in data["available_actions"]) == (SHOP, True)


def test_the_sandbox_of_trackstar_is_made_once_and_emptied_after(world: World, contract: Contract) -> None:
    made = body_of(contract.generate("k"))
    caller = Caller("k", made["access_token"])
    assert end(contract, contract.cancel(caller, "sandbox-order-1")).status == 200
    assert body_of(contract.generate("k")) == made
    assert world.order(made["connection_id"], "sandbox-order-1").truth.status == "open"
    assert contract.generate("x").status == 401


def control(world: World, verb: str, path: str, wish: Any = None, **query: str) -> Reply:
    body = b"" if wish is None else json.dumps(wish).encode()
    return handle(world, verb, tuple(path.split("/")) if path else (), query, body)


def test_control_makes_and_alters_orders_and_tells_the_truth(world: World, contract: Contract) -> None:
    place = {"connection_id": SHOP, "order_id": ORDER}
    assert control(world, "POST", "orders", {**place, "script": ["503"]}).status == 200
    cancel(contract)
    told = body_of(control(world, "POST", "orders", {**place, "status": "packed", "reads": ["500"]}))
    assert (told["truth"]["status"], told["reads"], told["script"]) == ("packed", ["500"], [])
    assert told["truth"]["requests"][0]["status"] == 503
    assert body_of(control(world, "GET", "orders", **place)) == told
    assert body_of(control(world, "GET", "orders")) == [told]
    assert body_of(control(world, "POST", "sync"))["synced"] == 1
    assert body_of(control(world, "POST", "orders/ship", place))["truth"]["status"] == "fulfilled"
    assert body_of(control(world, "POST", "orders/release", place)) == {"released": 0}
    assert body_of(control(world, "POST", "orders/settle", place))["truth"]["copy_status"] == "packed"


def test_control_makes_connections_and_counts_their_traffic(world: World, contract: Contract) -> None:
    wish = {"id": "shop-2", "access_token": "t2", "writes_per_second": None, "fault": "503"}
    made = body_of(control(world, "POST", "connections", wish))
    assert (made["access_token"], made["writes_per_second"], made["fault"]) == ("t2", None, "503")
    end(contract, contract.cancel(Caller("k", "t2"), ORDER))
    told = body_of(control(world, "GET", "connections"))
    assert [each["traffic"]["writes"] for each in told] == [0, 1]
    assert body_of(control(world, "GET", ""))["connections"] == 2


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
    assert (reply.status, body_of(reply)["origin"]) == (400, "sandbox")
    assert len(body_of(reply)["error"]) > 10
    assert (len(world.connections()), len(world.orders())) == (1, 0)


def test_an_unknown_control_endpoint_lists_the_known_ones(world: World) -> None:
    reply = control(world, "POST", "nonsense")
    assert reply.status == 404
    assert "POST /_sandbox/orders/release" in body_of(reply)["error"]
