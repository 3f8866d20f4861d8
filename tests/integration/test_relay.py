"""Events get from the outbox to the stream, each at least once and seldom twice; real Redis, on both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.parts import Proxy
from sqlalchemy import Engine, delete, event, select, update

from worker.cancellation.event import write_event
from worker.ledger import outbox
from worker.ledger.schema import events
from worker.ledger.told import read_told
from worker.runtime import relay as relays
from worker.runtime.relay import BATCH, Relay
from worker.streams import EVENTS, connect_redis

if TYPE_CHECKING:
    from conftest import LedgerSwitch, Logged
    from redis import Redis

    from worker.dev.embedded import EmbeddedRedis

HELD = "trackstar.held"
SOON = 10.0  # more than any of this takes; nothing waits for so long when all is well


class Stream:
    """Reads the events as a subscriber does."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._last = "0"

    def next(self, count: int = 1) -> list[int]:
        """Return the numbers of the next events, as soon as there are so many."""
        found: list[int] = []
        while len(found) < count:
            ((_, entries),) = self._redis.xread({EVENTS: self._last}, block=int(SOON * 1000)) or ((None, ()),)
            assert entries, f"Only {len(found)} of {count} events came."
            self._last = entries[-1][0]
            found += [json.loads(fields[b"event"])["connections"] for _, fields in entries]
        return found

    def all(self) -> list[int]:
        """Return the numbers of all events that are on the stream."""
        return [json.loads(fields[b"event"])["connections"] for _, fields in self._redis.xrange(EVENTS)]


@pytest.fixture
def stream(redis: Redis) -> Stream:
    return Stream(redis)


@pytest.fixture
def network(redis_server: EmbeddedRedis) -> Iterator[Proxy]:
    """What is between a relay and its Redis."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def make(ledger: Engine, network: Proxy, redis: Redis) -> Iterator[Callable[..., Relay]]:  # noqa: ARG001 - empties it
    """Make relays that end with the test."""
    made: list[Relay] = []
    client = connect_redis(f"redis://127.0.0.1:{network.port}/0", socket_timeout=1.0)

    def make_one(through: Any = client, *, start: bool = True) -> Relay:
        made.append(Relay(through, ledger))
        if start:
            made[-1].loop.start()
        return made[-1]

    yield make_one
    network.pass_on()
    for each in made:
        each.loop.stop(SOON)
    client.close()


@pytest.fixture
def relay(make: Callable[..., Relay]) -> Relay:
    return make()


def write(ledger: Engine, *numbers: int) -> None:
    """Write events for whoever looks into the outbox."""
    with ledger.begin() as db:
        outbox.add_events(db, [(None, HELD, {"connections": number}) for number in numbers])


def write_leased(ledger: Engine, *numbers: int) -> list[int]:
    """Write events that are handed over in memory."""
    with ledger.begin() as db:
        return outbox.add_leased_events(db, [(None, HELD, {"connections": number}) for number in numbers])


def unmarked(ledger: Engine) -> list[int]:
    """Return the numbers of the events that the ledger calls unpublished."""
    with ledger.connect() as db:
        rows = db.execute(select(events.c.payload).where(events.c.publish_at.is_not(None)).order_by(events.c.id))
        return [json.loads(payload)["connections"] for payload in rows.scalars()]


def let_leases_end(ledger: Engine) -> None:
    """Let the time pass that a publisher has before others may think it dead."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    with ledger.begin() as db:
        db.execute(update(events).where(events.c.publish_at.is_not(None)).values(publish_at=past))


# -- when all is well


def test_what_is_handed_over_is_published_and_marked(ledger: Engine, relay: Relay, stream: Stream) -> None:
    relay.put(write_leased(ledger, 1, 2, 3))

    assert [1, 2, 3] == stream.next(3)
    assert relay.loop.stop(SOON)
    assert [] == unmarked(ledger)


def test_an_event_stands_on_the_stream_as_it_is_told_with_its_type_and_its_number_in_the_ledger(
    ledger: Engine, relay: Relay, stream: Stream, redis: Redis
) -> None:
    (written,) = write_leased(ledger, 7)
    relay.put([written])
    stream.next()

    ((_, fields),) = redis.xrange(EVENTS)
    with ledger.connect() as db:
        (told,) = read_told(db, [written])
    assert {b"type": HELD.encode(), b"event": write_event(told.event), b"event_id": b"%d" % written} == fields
    assert 7 == json.loads(fields[b"event"])["connections"]


def test_what_was_deleted_meanwhile_is_not_published_and_stands_in_nobodys_way(
    ledger: Engine, relay: Relay, stream: Stream
) -> None:
    numbers = write_leased(ledger, 1, 2)
    with ledger.begin() as db:
        db.execute(delete(events).where(events.c.id == numbers[0]))
    relay.put(numbers)

    assert [2] == stream.next()
    assert relay.loop.stop(SOON)
    assert [] == unmarked(ledger)


def test_a_wake_empties_the_outbox_however_full_it_is(ledger: Engine, relay: Relay, stream: Stream) -> None:
    numbers = list(range(2 * BATCH + 1))
    write(ledger, *numbers)
    relay.wake()

    assert numbers == stream.next(len(numbers))
    assert relay.loop.stop(SOON)
    assert [] == unmarked(ledger)


def test_a_wake_before_the_start_is_not_lost(ledger: Engine, make: Callable[..., Relay], stream: Stream) -> None:
    relay = make(start=False)
    write(ledger, 1)
    relay.wake()
    relay.loop.start()

    assert [1] == stream.next()


class BeforeEachPublication:
    """A Redis that does something just before events are sent, when what was taken from the outbox is in hand."""

    def __init__(self, redis: Redis, *does: Callable[[], None]) -> None:
        self._redis = redis
        self._does = list(does)

    def pipeline(self, **options: Any) -> Any:
        if self._does:
            self._does.pop(0)()
        return self._redis.pipeline(**options)


def test_a_wake_during_a_look_is_not_lost(
    ledger: Engine, make: Callable[..., Relay], stream: Stream, redis: Redis
) -> None:
    def wake_again() -> None:
        write(ledger, 2)
        relay.wake()

    relay = make(BeforeEachPublication(redis, wake_again), start=False)
    write(ledger, 1)
    relay.wake()
    relay.loop.start()

    assert [1, 2] == stream.next(2)


def test_what_is_handed_over_during_a_publication_is_published_too(
    ledger: Engine, make: Callable[..., Relay], stream: Stream, redis: Redis
) -> None:
    relay = make(BeforeEachPublication(redis, lambda: relay.put(write_leased(ledger, 2))), start=False)
    relay.put(write_leased(ledger, 1))
    relay.loop.start()

    assert [1, 2] == stream.next(2)


@pytest.fixture
def marks(ledger: Engine) -> list[str]:
    """The statements that mark events as published, as they run."""
    seen: list[str] = []

    @event.listens_for(ledger, "after_cursor_execute")
    def _collect(_db: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE events" in statement:
            seen.append(statement)

    return seen


def test_what_is_published_is_marked_once(ledger: Engine, relay: Relay, stream: Stream, marks: list[str]) -> None:
    relay.put(write_leased(ledger, 1, 2))
    stream.next(2)
    assert relay.loop.stop(SOON)

    assert (1, []) == (len(marks), unmarked(ledger))


def test_under_load_many_are_marked_at_once(ledger: Engine, relay: Relay, stream: Stream, marks: list[str]) -> None:
    for number in range(20):
        relay.put(write_leased(ledger, number))
        stream.next()
    assert relay.loop.stop(SOON)

    assert [] == unmarked(ledger)
    assert 10 > len(marks)  # the first at once, the others gather for half a second


# -- when Redis is away


def test_what_could_not_be_published_is_found_in_the_outbox(
    ledger: Engine, network: Proxy, relay: Relay, stream: Stream, logged: Logged
) -> None:
    network.refuse()
    relay.put(write_leased(ledger, 1, 2))
    logged.wait_for("relay.unavailable")
    network.pass_on()
    logged.wait_for("relay.recovered")
    assert ([], [1, 2]) == (stream.all(), unmarked(ledger))

    let_leases_end(ledger)
    relay.wake()  # as the housekeeper does when events are due
    assert [1, 2] == stream.next(2)
    assert relay.loop.stop(SOON)
    assert [] == unmarked(ledger)


def test_what_comes_while_redis_is_away_is_published_when_it_is_back(
    ledger: Engine, network: Proxy, relay: Relay, stream: Stream, logged: Logged
) -> None:
    network.refuse()
    relay.put(write_leased(ledger, 1))
    logged.wait_for("relay.unavailable")
    write(ledger, 2)
    network.pass_on()

    assert [2] == stream.next()  # without another wake
    assert relay.loop.stop(SOON)
    assert [1] == unmarked(ledger)


def test_a_wake_while_the_ledger_is_away_is_not_lost(
    ledger: Engine, ledger_switch: LedgerSwitch, relay: Relay, stream: Stream
) -> None:
    write(ledger, 1)
    ledger_switch.away()
    relay.wake()
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()

    assert [1] == stream.next()


def test_what_is_more_than_a_process_may_keep_is_left_to_the_outbox(
    ledger: Engine, make: Callable[..., Relay], stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "MAX_HANDED", 2)
    relay = make(start=False)
    for number in range(5):
        relay.put(write_leased(ledger, number))
    relay.loop.start()
    assert [0, 1] == stream.next(2)

    let_leases_end(ledger)
    relay.wake()
    assert {2, 3, 4} <= set(stream.next(3))


# -- the end


def test_what_is_left_at_the_end_is_published_and_marked(
    ledger: Engine, make: Callable[..., Relay], stream: Stream
) -> None:
    relay = make(start=False)
    relay.loop.halt()  # it ends before it could publish anything
    relay.put(write_leased(ledger, 1, 2))
    write(ledger, 3)
    relay.wake()
    relay.loop.start()

    assert relay.loop.stop(SOON)
    assert ([1, 2, 3], []) == (stream.all(), unmarked(ledger))


def test_a_relay_that_cannot_publish_ends_and_leaves_its_events_to_others(
    ledger: Engine, network: Proxy, make: Callable[..., Relay], stream: Stream, logged: Logged
) -> None:
    relay, other = make(), make(start=False)
    network.refuse()
    relay.put(write_leased(ledger, 1))
    logged.wait_for("relay.unavailable")
    assert relay.loop.stop(SOON)
    assert ([], [1]) == (stream.all(), unmarked(ledger))

    network.pass_on()
    let_leases_end(ledger)
    other.wake()
    other.loop.start()
    assert [1] == stream.next()


# -- a failure between the publication and its mark


def test_a_mark_that_fails_is_made_later_and_nothing_is_published_again(
    ledger: Engine,
    ledger_switch: LedgerSwitch,
    make: Callable[..., Relay],
    stream: Stream,
    redis: Redis,
    logged: Logged,
) -> None:
    relay = make(BeforeEachPublication(redis, ledger_switch.away))
    relay.put(write_leased(ledger, 1, 2))
    assert [1, 2] == stream.next(2)
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()
    logged.wait_for("relay.recovered")
    assert relay.loop.stop(SOON)

    assert ([1, 2], []) == (stream.all(), unmarked(ledger))


def test_what_a_lost_process_published_and_did_not_mark_is_published_once_more_and_not_again(
    ledger: Engine, ledger_switch: LedgerSwitch, make: Callable[..., Relay], stream: Stream, redis: Redis
) -> None:
    lost = make(BeforeEachPublication(redis, ledger_switch.away))
    lost.put(write_leased(ledger, 1, 2))
    assert [1, 2] == stream.next(2)
    assert ledger_switch.tried.wait(SOON)
    assert not lost.loop.stop(0.1)
    lost.loop._thread.join(SOON)
    ledger_switch.back()

    early, later, last = make(), make(), make()
    early.wake()  # its lease has not ended: nobody else publishes
    assert early.loop.stop(SOON)
    assert [1, 2] == stream.all()
    let_leases_end(ledger)
    for each in (later, last):
        each.wake()
        assert each.loop.stop(SOON)
    assert ([1, 2, 1, 2], []) == (stream.all(), unmarked(ledger))


def test_of_two_relays_at_once_each_event_goes_through_one(
    ledger: Engine, make: Callable[..., Relay], stream: Stream
) -> None:
    numbers = list(range(BATCH + 50))
    write(ledger, *numbers)
    both = [make(), make()]
    together = threading.Barrier(2)

    def wake(each: Relay) -> None:
        together.wait(SOON)
        each.wake()

    threads = [threading.Thread(target=wake, args=(each,)) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)

    assert numbers == sorted(stream.next(len(numbers)))
    assert [True, True] == [each.loop.stop(SOON) for each in both]
    assert numbers == sorted(stream.all())


def test_another_type_in_the_place_of_the_stream_is_named_once_and_events_wait(
    redis: Redis, ledger: Engine, make: Callable[..., Relay], stream: Stream, logged: Logged
) -> None:
    redis.set(EVENTS, "another's")
    write(ledger, 1)
    relay = make()
    relay.wake()
    line = logged.wait_for("redis.refuses")
    assert ("The events", "WRONGTYPE", True) == (line["part"], line["error"], EVENTS in line["remedy"])

    logged.wait_for("relay.unavailable")
    redis.delete(EVENTS)
    let_leases_end(ledger)
    relay.wake()
    assert [1] == stream.next()
    assert "redis.refuses" not in logged.events()
