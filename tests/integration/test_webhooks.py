"""Webhooks, from the transaction that writes an event to the receiver that verifies it, on both databases.

Receivers are real servers on this machine, which do what receivers do: refuse, hang, be gone, come back.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from harness.receiver import Answer, Received, Receiver
from sqlalchemy import Engine, delete, func, insert, select, update
from standardwebhooks import WebhookVerificationError

from worker.cancellation.delivery import Rules
from worker.ledger import audit, delivery_notes, endpoints, feed, retention
from worker.ledger import deliveries as deliveries_of_workers
from worker.ledger.database import open_ledger, read_only
from worker.ledger.deliveries import MAX_WAITING
from worker.ledger.outbox import add_events
from worker.ledger.schema import deliveries, delivery_tries, events
from worker.ledger.schema import endpoints as table
from worker.ledger.vault import TokenVault
from worker.runtime.webhook_shares import MAX_AT_ONCE
from worker.runtime.webhooks import Webhooks
from worker.telemetry.metrics import Metrics
from worker.webhooks.request import new_secret
from worker.webhooks.sender import Network, trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Logged

FAST = Rules(waits=(0.02,) * 9)
SLOWER = Rules(waits=(0.3,) * 9)
TRIED_FOR = 2.0  # seconds of one try
d, e, p, t = deliveries.c, events.c, table.c, delivery_tries.c


def held(number: int, connection_id: str = "shop-1") -> tuple[None, str, dict[str, Any]]:
    return None, "connection.held", {"connection_id": connection_id, "reason": f"reason_{number}"}


class Sending:
    """A ledger and the workers that send its events."""

    def __init__(self, ledger: Engine, url: str, vault: TokenVault) -> None:
        self.ledger = ledger
        self._url = url
        self.vault = vault
        self.metrics = Metrics()
        self.workers: list[Webhooks] = []
        self.secrets: dict[str, str] = {}

    def add(self, url: str, **more: Any) -> str:
        secret = new_secret()
        with self.ledger.begin() as db:
            id_ = endpoints.add(db, url, self.vault.encrypt(secret), **more)
        self.secrets[id_] = secret
        return id_

    def worker(self, rules: Rules = FAST, **more: Any) -> Webhooks:
        """Make one, which does not run yet."""
        network = more.pop("network", None) or Network(allow_private=True, tls=trust(), seconds=TRIED_FOR)
        given = {"concurrency": 32, "rules": rules, "poll": 0.02, "dice": lambda: 0.5} | more
        ledger = open_ledger(self._url, pool_size=1, plan_once=True)
        owner = f"w-{len(self.workers)}"
        decrypt = given.pop("decrypt", self.vault.decrypt)
        made = Webhooks(ledger, owner, decrypt, network, self.metrics, **given)
        self.workers.append(made)
        return made

    def start(self, rules: Rules = FAST, **more: Any) -> Webhooks:
        made = self.worker(rules, **more)
        made.loop.start()
        return made

    def tell(self, *news: Any) -> None:
        with self.ledger.begin() as db:
            add_events(db, news)
        for each in self.workers:
            each.wake()

    def count(self, table: Any, *which: Any) -> int:
        with read_only(self.ledger) as db:
            return int(db.execute(select(func.count()).select_from(table).where(*which)).scalar_one())

    def of(self, id_: str) -> endpoints.EndpointRow:
        with read_only(self.ledger) as db:
            return endpoints.known(db, id_)

    def wait_until(self, fact: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        for each in self.workers:
            if each.loop.alive:
                assert each.loop.stop(10)
            each._tries.stop()
            each._ledger.dispose()


@pytest.fixture
def sending(ledger: Engine, database_url: str, vault: TokenVault) -> Iterator[Sending]:
    made = Sending(ledger, database_url, vault)
    yield made
    made.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def test_what_is_sent_is_the_event_in_the_form_of_standard_webhooks_and_verifies(
    sending: Sending, receiver: Receiver
) -> None:
    id_ = sending.add(receiver.url)
    sending.start()
    sending.tell(held(1))
    (received,) = receiver.wait_for(1)
    with sending.ledger.connect() as db:
        (told,) = feed.read_feed(db, 0)

    assert ["type", "timestamp", "data"] == list(received.document)
    assert received.document == received.verified(sending.secrets[id_])
    assert ("connection.held", "reason_1") == (received.document["type"], received.event["reason"])
    assert told.event.id == received.id == received.event["id"]
    assert "application/json" == received.headers["content-type"]
    assert received.headers["user-agent"].startswith("cancel-worker/")
    with pytest.raises(WebhookVerificationError):
        received.verified(new_secret())
    sending.wait_until(lambda: sending.count(delivery_tries) == 1)
    assert 0 == sending.count(deliveries)


def test_an_event_is_received_within_a_moment_of_its_commit(sending: Sending, receiver: Receiver) -> None:
    sending.add(receiver.url)
    sending.start(poll=60.0)  # so it is woken, and does not happen to look
    sending.wait_until(lambda: sending.workers[0]._active == 1)
    took = []
    for number in range(15):
        sending.tell(held(number))
        committed = time.time()
        took.append(receiver.wait_for(number + 1)[number].at - committed)

    assert sorted(took)[7] < 1.0  # on an idle machine below 0.05; this one may be busy


def test_each_try_is_a_row_without_the_body(sending: Sending, receiver: Receiver) -> None:
    answers = iter([500, 200])
    receiver.answer = lambda _: (next(answers), {})
    id_ = sending.add(receiver.url)
    sending.start()
    sending.tell(held(1))
    sending.wait_until(lambda: sending.count(delivery_tries) == 2)
    with sending.ledger.connect() as db:
        tries = endpoints.last_tries(db, id_, 10)

    assert [(2, 200, "delivered"), (1, 500, "http_500")] == [(each.try_, each.status, each.reason) for each in tries]
    first, second = receiver.received
    assert first.id == second.id
    assert first.body == second.body
    assert 'http_response_status_code="500"' in sending.metrics.render().decode()


def test_an_endpoint_gets_the_types_and_connections_that_it_asked_for(sending: Sending, receiver: Receiver) -> None:
    sending.add(receiver.url, types=["connection.held"], connections=["shop-1"])
    sending.start()
    resumed = (None, "connection.resumed", {"connection_id": "shop-1"})
    everything = (None, "trackstar.held", {"connections": 3})
    sending.tell(held(1, "shop-2"), resumed, everything, held(2))
    receiver.wait_for(1)

    assert ["reason_2"] == [each.event["reason"] for each in receiver.received]
    sending.wait_until(lambda: sending.count(deliveries) == 0)


def test_what_was_written_before_an_endpoint_was_added_is_not_sent_to_it(sending: Sending, receiver: Receiver) -> None:
    sending.tell(held(1))
    sending.add(receiver.url)
    sending.start()
    sending.tell(held(2))
    receiver.wait_for(1)

    assert ["reason_2"] == [each.event["reason"] for each in receiver.received]


def test_events_of_one_subject_keep_their_order_under_failures_and_others_go_on(
    sending: Sending, receiver: Receiver
) -> None:
    refused = []

    def answer(received: Received) -> tuple[int, dict[str, str]]:
        again = received.event["connection_id"] == "shop-1" and len(refused) < 4
        if again:
            refused.append(received.id)
        return 503 if again else 200, {}

    receiver.answer = answer
    sending.add(receiver.url)
    sending.start(SLOWER)
    sending.tell(*(held(number) for number in range(3)), *(held(number, "shop-2") for number in range(3)))
    sending.wait_until(lambda: sending.count(deliveries) == 0 and sending.count(delivery_tries) == 10)

    def reasons(shop: str) -> list[str]:
        return [each.event["reason"] for each in receiver.received if each.event["connection_id"] == shop]

    assert [*["reason_0"] * 5, "reason_1", "reason_2"] == reasons("shop-1")
    assert ["reason_0", "reason_1", "reason_2"] == reasons("shop-2")
    assert "shop-1" == receiver.received[-1].event["connection_id"]


def test_two_workers_share_endpoints_and_send_each_event_once(sending: Sending, receiver: Receiver) -> None:
    for _ in range(6):
        sending.add(receiver.url)
    sending.start()
    sending.start()
    for number in range(10):
        sending.tell(held(number), held(number, "shop-2"))
    receiver.wait_for(120)
    sending.wait_until(lambda: sending.count(deliveries) == 0)

    assert 120 == len(receiver.received)
    assert {6} == {
        sum(each.id == id_ for each in receiver.received) for id_ in {each.id for each in receiver.received}
    }


def test_an_endpoint_that_refuses_for_ever_is_told_of_and_paused_and_loses_nothing(
    sending: Sending, receiver: Receiver, logged: Logged
) -> None:
    receiver.answer = lambda _: (500, {})
    id_ = sending.add(receiver.url, types=["connection.held"])
    sending.start()
    sending.tell(held(1), held(2, "shop-2"))
    sending.wait_until(lambda: sending.of(id_).state == "paused")
    sending.tell(held(3))
    alerts = [logged.wait_for("endpoint.failing", 60)["percent"] for _ in range(3)]
    assert [50, 70, 90] == alerts
    assert id_ == logged.wait_for("endpoint.paused")["endpoint_id"]
    with sending.ledger.connect() as db:
        rows = db.execute(select(e.type, e.payload).where(e.type.like("endpoint.%")).order_by(e.id)).all()
    assert ["endpoint.failing"] * 3 + ["endpoint.paused"] == [row.type for row in rows]

    receiver.answer = lambda _: (200, {})
    before = len(receiver.received)
    with sending.ledger.begin() as db:
        endpoints.resume(db, id_)
    receiver.wait_for(before + 3)
    sending.wait_until(lambda: sending.count(deliveries) == 0)

    assert {"reason_1", "reason_2", "reason_3"} == {each.event["reason"] for each in receiver.received[before:]}
    assert ("active", 0) == (sending.of(id_).state, sending.of(id_).failures)


def test_one_event_that_is_always_refused_is_set_aside_with_an_alert_and_no_other_waits_for_it(
    sending: Sending, receiver: Receiver, logged: Logged
) -> None:
    receiver.answer = lambda received: (400 if received.event["connection_id"] == "bad" else 200, {})
    id_ = sending.add(receiver.url)
    sending.start()
    sending.tell(held(0, "bad"), held(1, "bad"))
    stop = threading.Event()

    def others() -> None:
        number = 0
        while not stop.wait(0.03):
            number += 1
            sending.tell(held(number, f"shop-{number}"))

    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    try:
        line = logged.wait_for("endpoint.event_set_aside", 60)
        sending.wait_until(lambda: sending.of(id_).set_aside == 2)
    finally:
        stop.set()
        thread.join()

    assert (id_, "http_400") == (line["endpoint_id"], line["reason"])
    assert "active" == sending.of(id_).state
    bad = [each.event["reason"] for each in receiver.received if each.event["connection_id"] == "bad"]
    assert bad == ["reason_0"] * FAST.limit + ["reason_1"] * FAST.limit  # the second goes on once the first is aside


def test_what_is_set_aside_takes_no_room_of_what_comes(sending: Sending, receiver: Receiver) -> None:
    id_ = sending.add(receiver.url)
    aside = [{"endpoint_id": id_, "event_number": -n, "subject": f"order-{n}"} for n in range(1, MAX_WAITING + 1)]
    with sending.ledger.begin() as db:
        db.execute(insert(deliveries), aside)
    sending.start()
    sending.tell(held(0))
    sending.wait_until(lambda: receiver.received)

    assert ["reason_0"] == [each.event["reason"] for each in receiver.received]
    assert MAX_WAITING == sending.of(id_).set_aside


def test_410_removes_an_endpoint_and_says_so(sending: Sending, receiver: Receiver, logged: Logged) -> None:
    receiver.answer = lambda _: (410, {})
    id_ = sending.add(receiver.url)
    sending.start()
    sending.tell(held(1))
    assert id_ == logged.wait_for("endpoint.removed")["endpoint_id"]
    with sending.ledger.connect() as db:
        (act,) = audit.find(db, kind="endpoint")

    assert ("remove", id_) == (act.action, act.target_id)
    assert (0, 0, 1) == (sending.count(table), sending.count(deliveries), sending.count(delivery_tries))
    assert 1 == sending.count(events, e.type == "endpoint.removed")


def test_retry_after_is_obeyed_for_the_whole_endpoint(sending: Sending, receiver: Receiver) -> None:
    answers = iter([(429, {"Retry-After": "1"})])
    receiver.answer = lambda _: next(answers, (200, {}))
    sending.add(receiver.url)
    sending.start()
    sending.tell(held(1))
    receiver.wait_for(1)
    sending.wait_until(lambda: sending.count(delivery_tries) == 1)
    sending.tell(held(2, "shop-2"))
    receiver.wait_for(3)
    first, *others = receiver.received

    assert 0.9 < min(each.at for each in others) - first.at < 5


def test_a_pause_that_a_receiver_asks_for_holds_whatever_its_other_answers_of_that_time_say(
    sending: Sending, receiver: Receiver
) -> None:
    asked, others = threading.Event(), threading.Event()

    def answer(received: Received) -> Answer:
        if received.event["reason"] == "reason_1":
            return 429, {"Retry-After": "3600"}
        asked.set()
        assert others.wait(20)
        return 200, {}

    id_ = sending.add(receiver.url)
    sending.start()
    receiver.answer = lambda _: (200, {})
    sending.tell(held(0, "shop-0"))
    receiver.wait_for(1)
    receiver.answer = answer
    sending.tell(*(held(number, f"shop-{number}") for number in range(1, 4)))
    assert asked.wait(20)
    sending.wait_until(lambda: sending.count(delivery_tries) == 2)  # the first of all, and the one that is too much
    others.set()
    sending.wait_until(lambda: sending.count(delivery_tries) == 4)
    sending.tell(held(9, "shop-9"))
    sending.wait_until(lambda: sending.of(id_).waiting + sending.of(id_).behind >= 1)
    retry_at = sending.of(id_).retry_at

    assert retry_at is not None
    assert retry_at > datetime.now(UTC) + timedelta(seconds=3000)
    assert 4 == len(receiver.received)


def test_a_replay_also_sends_what_was_set_aside(sending: Sending, receiver: Receiver) -> None:
    receiver.answer = lambda received: (400 if received.event["reason"] == "reason_1" else 200, {})
    id_ = sending.add(receiver.url)
    sending.start(FAST)
    sending.tell(held(1), held(2, "shop-2"))
    sending.wait_until(lambda: sending.of(id_).set_aside == 1)
    receiver.answer = lambda _: (200, {})
    with sending.ledger.begin() as db:
        endpoints.replay_since(db, id_, datetime.now(UTC) - timedelta(hours=1))
    sending.wait_until(lambda: sending.count(deliveries) == 0)

    assert "reason_1" in [each.event["reason"] for each in receiver.received[-2:]]


def test_a_new_secret_signs_beside_the_old_one_until_its_day_is_over(sending: Sending, receiver: Receiver) -> None:
    id_ = sending.add(receiver.url)
    sending.start()
    new = new_secret()
    with sending.ledger.begin() as db:
        endpoints.rotate(db, id_, sending.vault.encrypt(new))
    sending.tell(held(1))
    receiver.wait_for(1)
    with sending.ledger.begin() as db:
        db.execute(update(table).values(old_secret_until=func.coalesce(None, p.created_at)))
    sending.tell(held(2))
    both, one = receiver.wait_for(2)

    assert both.verified(sending.secrets[id_]) == both.verified(new)
    assert one.verified(new)
    with pytest.raises(WebhookVerificationError):
        one.verified(sending.secrets[id_])


def test_a_secret_that_cannot_be_read_stops_one_endpoint_and_loses_nothing(
    sending: Sending, receiver: Receiver, logged: Logged
) -> None:
    other = TokenVault([Fernet.generate_key().decode()])
    with sending.ledger.begin() as db:
        lost = endpoints.add(db, receiver.url + "/lost", other.encrypt(new_secret()))
    sending.add(receiver.url)
    sending.start()
    sending.tell(held(1))
    assert lost == logged.wait_for("endpoint.secret_unreadable")["endpoint_id"]
    receiver.wait_for(1)
    assert ["/hook"] == [each.path for each in receiver.received]
    assert 0 == sending.of(lost).failures

    with sending.ledger.begin() as db:
        db.execute(update(table).where(p.id == lost).values(secret=sending.vault.encrypt(new_secret()), retry_at=None))
    receiver.wait_for(2)
    assert "/hook/lost" == receiver.received[1].path


def test_of_a_hundred_endpoints_of_which_ninety_nine_hang_the_healthy_one_is_not_delayed(
    sending: Sending, receiver: Receiver
) -> None:
    sending.add(receiver.url)
    network = Network(allow_private=True, tls=trust(), seconds=30)
    worker = sending.start(Rules(), concurrency=64, network=network)
    sending.tell(held(0))
    receiver.wait_for(1)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as hanging:  # takes connections, and never reads
        for _ in range(99):
            sending.add(f"http://127.0.0.1:{hanging.getsockname()[1]}/")
        took = []
        for number in range(5):
            sending.tell(held(number), held(number, f"shop-{number}"))
            began = time.monotonic()
            receiver.wait_for(2 * number + 3)
            took.append(time.monotonic() - began)
        hang = len(worker._running)

    assert max(took) < 15, took  # half of the time that a try may last; on an idle machine a tenth of a second
    assert 16 < hang <= 32 + MAX_AT_ONCE


DIES = """
import os, signal, sys, threading
from worker.ledger.database import open_ledger
from worker.ledger.vault import TokenVault
from worker.runtime import webhook_turn, webhooks
from worker.telemetry.metrics import Metrics
from worker.webhooks.sender import Network, trust

webhook_turn.LEASE_SECONDS = 1.0
webhooks.Webhooks._finished = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
_, url, key = sys.argv
network = Network(allow_private=True, tls=trust())
webhooks.Webhooks(
    open_ledger(url), "dies", TokenVault([key]).decrypt, network, Metrics(), concurrency=8, poll=0.05
).loop.start()
threading.Event().wait(60)
"""


def test_a_worker_that_is_killed_between_the_answer_and_its_note_tells_it_once_more_and_loses_nothing(
    sending: Sending, receiver: Receiver, database_url: str, credential_key: str
) -> None:
    id_ = sending.add(receiver.url)
    sending.tell(held(1), held(2), held(3, "shop-2"))
    died = subprocess.run([sys.executable, "-c", DIES, database_url, credential_key], timeout=60, check=False)
    assert -signal.SIGKILL == died.returncode
    assert 3 == sending.count(deliveries)
    sending.start()
    sending.wait_until(lambda: sending.count(deliveries) == 0 and sending.count(delivery_tries) == 3)

    told = Counter(each.event["reason"] for each in receiver.received)
    assert {"reason_1", "reason_2", "reason_3"} == set(told)
    assert max(told.values()) <= 2
    assert 3 == len({each.id for each in receiver.received})
    assert 0 == sending.of(id_).failures


def test_an_endpoint_that_comes_back_gets_all_at_once_what_was_put_off(sending: Sending, receiver: Receiver) -> None:
    receiver.answer = lambda _: (503, {})
    id_ = sending.add(receiver.url)
    sending.start(Rules(waits=(0.02, 0.02, 0.02, 0.02, 60, 60, 60, 60, 60)))
    sending.tell(held(1))
    sending.wait_until(lambda: sending.of(id_).failures == 5)
    receiver.answer = lambda _: (200, {})
    sending.tell(held(2, "shop-2"))
    sending.wait_until(lambda: sending.count(deliveries) == 0)

    assert 0 == sending.of(id_).failures


def test_a_replay_sends_everything_since_a_time_or_one_event_again(sending: Sending, receiver: Receiver) -> None:
    id_ = sending.add(receiver.url)
    sending.start()
    sending.tell(held(1), held(2))
    receiver.wait_for(2)
    sending.wait_until(lambda: sending.count(deliveries) == 0)
    with sending.ledger.begin() as db:
        first, second = feed.read_feed(db, 0)
        endpoints.replay_since(db, id_, first.event.at)
    receiver.wait_for(4)
    sending.wait_until(lambda: sending.count(deliveries) == 0)
    with sending.ledger.begin() as db:
        endpoints.replay_one(db, id_, second)
    receiver.wait_for(5)

    ids = [first.event.id, second.event.id]
    assert [*ids, *ids, second.event.id] == [each.id for each in receiver.received]


def test_tries_go_with_retention_and_a_delivery_whose_event_is_gone_is_no_hindrance(
    sending: Sending, receiver: Receiver
) -> None:
    receiver.answer = lambda _: (500, {})
    id_ = sending.add(receiver.url)
    sending.start(SLOWER)
    sending.tell(held(1))
    sending.wait_until(lambda: sending.count(delivery_tries) >= 1)
    with sending.ledger.begin() as db:
        db.execute(delete(events))
        assert 0 == retention.prune_tries(db, 3600)
    receiver.answer = lambda _: (200, {})
    sending.tell(held(2, "shop-2"))
    sending.wait_until(lambda: sending.count(deliveries) == 0)
    kept = sending.count(delivery_tries)
    with sending.ledger.begin() as db:
        assert kept == retention.count_tries(db, -60) == retention.prune_tries(db, -60) > 1
    assert 0 == sending.count(delivery_tries)
    assert 0 == sending.of(id_).waiting


def test_the_place_of_an_endpoint_is_the_end_of_the_feed_and_no_event_further(
    sending: Sending, receiver: Receiver
) -> None:
    id_ = sending.add(receiver.url)
    sending.tell(held(1), held(2))
    with sending.ledger.begin() as db:
        feed.give_places(db)
        db.execute(delete(events))  # by retention, before anybody was told: then nothing is read on the way
        (lane,) = deliveries_of_workers.take(db, "w", 60, [])
        assert ([], False) == deliveries_of_workers.fan_out(db, [lane])
        assert 2 == lane.place == feed.end_of_feed(db) == db.execute(select(p.place)).scalar_one()
        delivery_notes.release(db, "w")
    sending.start()
    sending.tell(held(3), held(4))
    receiver.wait_for(2)
    sending.wait_until(lambda: sending.count(deliveries) == 0)

    assert ["reason_3", "reason_4"] == [each.event["reason"] for each in receiver.received]
    assert 0 == sending.of(id_).behind


def test_places_of_endpoints_go_on_by_what_was_read_however_far_apart_they_are(sending: Sending) -> None:
    ids = [sending.add("http://127.0.0.1:9/"), sending.add("http://127.0.0.1:9/", types=["nothing"])]
    sending.tell(*(held(number, f"shop-{number}") for number in range(deliveries_of_workers.MAX_READ + 5)))
    with sending.ledger.begin() as db:
        feed.give_places(db)
        db.execute(update(table).where(p.id == ids[1]).values(place=3))
        lanes = deliveries_of_workers.take(db, "w", 60, [])
        rounds = [deliveries_of_workers.fan_out(db, lanes)[1] for _ in range(3)]
        end = feed.end_of_feed(db)

    assert [True, False, False] == rounds
    assert {end} == {lane.place for lane in lanes}
    assert [end, 0] == [sending.count(deliveries, d.endpoint_id == id_) for id_ in ids]


def test_without_an_endpoint_nothing_is_read_but_whether_there_is_one(sending: Sending) -> None:
    sending.tell(held(1))
    worker = sending.worker()
    rest = worker._tick()
    worker.wake()

    assert 5.0 == rest
    assert not worker.loop._woken.is_set()
    assert 1 == sending.count(events, e.place.is_(None))
