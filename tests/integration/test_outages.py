"""Who does not answer any more is held, as all workers together see it; real Redis, and both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec
import pytest
from harness.parts import Proxy
from redis import RedisError

from worker.cancellation.lifecycle import State, Transition
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger import connections, holds, transitions
from worker.ledger.attempts import WORKER_LOST, AttemptRow
from worker.ledger.claims import Lease, SendClaim
from worker.ledger.results import AttemptResult, CommitSummary, Result
from worker.runtime import outages as module
from worker.runtime.outages import AnswerTally, OutageDecision, Outages
from worker.runtime.recorder import Recorder
from worker.streams import connect_redis

if TYPE_CHECKING:
    from conftest import LedgerSwitch, Logged
    from redis import Redis
    from sqlalchemy import Engine

    from worker.dev.embedded import EmbeddedRedis
    from worker.ledger.vault import TokenVault

SOON = 10.0  # more than any of this takes; nothing waits for so long when all is well
SILENT_SECONDS = 3.0  # for so long a worker waits here for a Redis that says nothing
NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOBODY = OutageDecision()
NOTHING_CHANGED = CommitSummary(applied=frozenset(), held=frozenset(), resumed=frozenset())
ENDED = Transition(
    status=Status.SUCCEEDED, attempts=1, reason="accepted", verdict=Verdict.CANCELLED, evidence=Evidence.RESPONSE
)


def answer(connection_id: str, status: int | None, reason: str = "for_a_test") -> AttemptResult:
    """Return what came of one request to a connection; None where no answer came."""
    claim = SendClaim(
        lease=Lease("00000000-0000-5000-8000-000000000001", "w-1", 1),
        connection_id=connection_id,
        order_id="o-1",
        generation=1,
        claimed_at=NOW,
        encrypted_token=None,
        hold_reason=None,
        state=State(attempts=0, first_sent_at=NOW),
    )
    row = AttemptRow(kind="cancel", started_at=NOW, reason=reason, status=status)
    return AttemptResult(claim=claim, attempts=(row,), transition=ENDED)


def reads(connection_id: str, status: int, count: int) -> list[Result]:
    one = answer(connection_id, status)
    row = msgspec.structs.replace(one.attempts[0], kind="read")
    return [msgspec.structs.replace(one, attempts=(row,))] * count


def answers(connection_id: str, *, good: int = 0, bad: int = 0) -> list[Result]:
    return [answer(connection_id, 200)] * good + [answer(connection_id, 503)] * bad


def down(*names: str) -> OutageDecision:
    return OutageDecision(frozenset(names))


# -- the count


@pytest.fixture
def tally(redis: Redis) -> AnswerTally:
    return AnswerTally(redis)


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        (NOBODY, 0, 9),
        (down("shop-1"), 0, 10),
        (down("shop-1"), 2, 10),  # four fifths of twelve
        (NOBODY, 3, 10),
        (NOBODY, 100, 10),
        (NOBODY, 100, 0),
    ],
    ids=["too few", "ten", "four fifths", "less than four fifths", "a few of many", "none"],
)
def test_a_connection_is_down_after_ten_failures_that_are_four_fifths(
    tally: AnswerTally, expected: OutageDecision, good: int, bad: int
) -> None:
    assert expected == tally.count(answers("shop-1", good=good, bad=bad))


def test_all_workers_count_together(redis: Redis) -> None:
    one, other, third = (AnswerTally(redis) for _ in range(3))

    assert NOBODY == one.count(answers("shop-1", bad=6))
    assert down("shop-1") == other.count(answers("shop-1", bad=4))
    third.count(answers("shop-1", good=3))
    assert NOBODY == AnswerTally(redis).count(answers("shop-1", bad=1))


def test_one_connection_says_nothing_of_another(tally: AnswerTally) -> None:
    assert down("shop-1") == tally.count(
        answers("shop-1", bad=12) + answers("shop 2", good=12) + answers("shop-3", good=5, bad=5)
    )


def test_a_name_with_a_space_and_a_foreign_letter_is_a_name(tally: AnswerTally) -> None:
    assert down("ein Lagerhäuschen bad") == tally.count(answers("ein Lagerhäuschen bad", bad=10))


@pytest.mark.parametrize(
    ("failures", "status"),
    [(10, None), (10, 500), (10, 503), (0, 200), (0, 404), (0, 422), (0, 501), (0, 401), (0, 429)],
)
def test_only_silence_and_errors_of_a_server_are_failures(
    tally: AnswerTally, failures: int, status: int | None
) -> None:
    expected = down("shop-1") if failures else NOBODY

    assert expected == tally.count([answer("shop-1", status)] * 10)


@pytest.mark.parametrize("status", [401, 429])
def test_what_says_nothing_of_an_outage_is_not_counted_for_good_either(tally: AnswerTally, status: int) -> None:
    assert down("shop-1") == tally.count([answer("shop-1", status)] * 100 + answers("shop-1", bad=10))


@pytest.mark.parametrize(("expected", "bad"), [(down("shop-1"), 10), (NOBODY, 0)], ids=["hide", "make"])
def test_reads_hide_no_outage_and_make_none(tally: AnswerTally, expected: OutageDecision, bad: int) -> None:
    read = reads("shop-1", 200, 100) if bad else reads("shop-1", 503, 100)

    assert expected == tally.count([*read, *answers("shop-1", bad=bad)])


def test_the_guess_that_a_worker_was_lost_is_no_answer(tally: AnswerTally, redis: Redis) -> None:
    assert NOBODY == tally.count([answer("shop-1", None, WORKER_LOST)] * 20)
    assert [] == redis.keys()


def test_three_connections_that_fail_alike_are_trackstars_fault(tally: AnswerTally) -> None:
    failing = [each for name in ("shop-1", "shop-2", "shop-3") for each in answers(name, bad=4)]

    assert OutageDecision(all_of_them=True) == tally.count(failing)


@pytest.mark.parametrize(
    "others",
    [[], answers("shop-3", good=1, bad=3), answers("shop-3", good=4)],
    ids=["two", "one of three has mixed answers", "one of three is well"],
)
def test_fewer_than_three_that_fail_alike_are_not(tally: AnswerTally, others: list[Result]) -> None:
    decision = tally.count([*answers("shop-1", bad=9), *answers("shop-2", bad=9), *others])

    assert NOBODY == decision


def test_three_that_fail_alike_beside_one_that_is_well_are_each_at_fault(tally: AnswerTally) -> None:
    failing = [each for name in ("shop-1", "shop-2", "shop-3") for each in answers(name, bad=40)]

    assert down("shop-1", "shop-2", "shop-3") == tally.count([*failing, *answers("shop-4", good=4)])


def test_what_was_answered_half_a_minute_ago_counts_no_more(tally: AnswerTally, redis: Redis) -> None:
    tally.count(answers("shop-1", bad=9))
    (key,) = redis.keys()
    name, _, period = key.decode().rpartition(":")
    assert 0 < redis.ttl(key) <= 40  # nor is it kept
    redis.rename(key, f"{name}:{int(period) - 1}")
    assert down("shop-1") == AnswerTally(redis).count(answers("shop-1", bad=1))

    redis.rename(f"{name}:{int(period) - 1}", f"{name}:{int(period) - 3}")
    assert NOBODY == AnswerTally(redis).count(answers("shop-1", bad=1))


def test_one_worker_looks_at_the_counts_once_a_second(tally: AnswerTally) -> None:
    assert [NOBODY, NOBODY] == [tally.count(answers("shop-1", bad=9)), tally.count(answers("shop-1", bad=9))]

    tally._evaluated_at -= module.MIN_SECONDS
    assert down("shop-1") == tally.count(answers("shop-1", bad=1))


def test_a_connection_that_resumes_begins_anew_and_no_other_does(tally: AnswerTally, redis: Redis) -> None:
    tally.count(answers("shop-1", bad=20) + answers("shop-2", bad=20))
    tally.reset(["shop-1"])

    assert down("shop-2") == AnswerTally(redis).count(answers("shop-1", bad=9))
    assert down("shop-1", "shop-2") == AnswerTally(redis).count(answers("shop-1", bad=1))


def test_when_trackstar_is_back_all_begin_anew(tally: AnswerTally, redis: Redis) -> None:
    tally.count([each for name in ("shop-1", "shop-2", "shop-3") for each in answers(name, bad=20)])
    tally.reset()

    assert [] == redis.keys()
    assert NOBODY == AnswerTally(redis).count(answers("shop-1", bad=9))


# -- the thread that holds


@pytest.fixture
def held() -> SimpleQueue[frozenset[str] | int]:
    """Who was held; what a worker is told of it."""
    return SimpleQueue()


@pytest.fixture
def network(redis_server: EmbeddedRedis) -> Iterator[Proxy]:
    """What is between a worker and its Redis."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def outages(
    ledger: Engine,
    redis: Redis,  # noqa: ARG001 - empties it
    network: Proxy,
    vault: TokenVault,
    held: SimpleQueue[frozenset[str] | int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Outages]:
    monkeypatch.setattr(module, "MIN_SECONDS", 0.0)
    with ledger.begin() as db:
        for name in ("shop-1", "shop-2", "shop-3"):
            connections.add(db, name, vault.encrypt(f"token-of-{name}"))
    client = connect_redis(f"redis://127.0.0.1:{network.port}/0", socket_timeout=SILENT_SECONDS)
    made = Outages(client, ledger, held.put)
    made.loop.start()
    yield made
    network.pass_on()
    made.loop.stop(SOON)
    client.close()


def hold_of(ledger: Engine, name: str = "shop-1") -> str | None:
    with ledger.connect() as db:
        found = connections.find(db, name)
    assert found is not None
    return found.hold_reason


def resumed(*names: str) -> CommitSummary:
    return msgspec.structs.replace(NOTHING_CHANGED, resumed=frozenset(names))


def test_who_is_down_is_held_and_told(
    ledger: Engine, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    outages.put(answers("shop-1", bad=10) + answers("shop-2", good=10), NOTHING_CHANGED)

    assert {"shop-1"} == held.get(timeout=SOON)
    assert [holds.OUTAGE, None] == [hold_of(ledger, name) for name in ("shop-1", "shop-2")]


def test_all_are_held_when_three_fail_alike(
    ledger: Engine, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    for name in ("shop-1", "shop-2", "shop-3"):
        outages.put(answers(name, bad=4), NOTHING_CHANGED)

    assert 3 == held.get(timeout=SOON)
    assert {holds.TRACKSTAR_OUTAGE} == {hold_of(ledger, name) for name in ("shop-1", "shop-2", "shop-3")}


def test_a_hold_is_begun_and_told_once(
    ledger: Engine, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    for _ in range(2):
        outages.put(answers("shop-1", bad=10), NOTHING_CHANGED)

    assert [{"shop-1"}, frozenset()] == [held.get(timeout=SOON) for _ in range(2)]
    assert holds.OUTAGE == hold_of(ledger)


def test_a_connection_that_resumes_is_not_held_for_what_was_before(
    ledger: Engine, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    outages.put(answers("shop-1", bad=20) + answers("shop-2", bad=9), NOTHING_CHANGED)
    assert {"shop-1"} == held.get(timeout=SOON)
    with ledger.begin() as db:
        assert holds.resume(db, ["shop-1"], holds.ALL)
    outages.put(answers("shop-1", good=1), resumed("shop-1"))
    outages.put(answers("shop-1", bad=1), NOTHING_CHANGED)
    outages.put(answers("shop-2", bad=1), NOTHING_CHANGED)  # of others nothing is forgotten

    assert {"shop-2"} == held.get(timeout=SOON)
    assert hold_of(ledger) is None


def test_a_connection_that_resumes_while_redis_is_away_begins_anew_when_it_is_back(
    ledger: Engine, redis: Redis, held: SimpleQueue[frozenset[str] | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SECONDS", 0.0)
    outages = Outages(redis, ledger, held.put)
    outages.put(answers("shop-1", bad=20), NOTHING_CHANGED)
    outages._tick()
    outages.put(answers("shop-1", good=1), resumed("shop-1"))
    with monkeypatch.context() as away:
        away.setattr(AnswerTally, "reset", raise_redis_error)
        with pytest.raises(RedisError):
            outages._tick()
    outages.put(answers("shop-1", bad=1), NOTHING_CHANGED)
    outages._tick()

    assert NOBODY == AnswerTally(redis).count(answers("shop-1", bad=8))


def raise_redis_error(*_: object) -> None:
    raise RedisError("away")


def test_when_trackstar_resumes_nobody_is_held_for_what_was_before(
    ledger: Engine, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    names = ("shop-1", "shop-2", "shop-3")
    outages.put([each for name in names for each in answers(name, bad=20)], NOTHING_CHANGED)
    assert 3 == held.get(timeout=SOON)
    with ledger.begin() as db:
        assert 3 == holds.resume_all(db)
    outages.put(answers("shop-1", good=1), msgspec.structs.replace(NOTHING_CHANGED, trackstar_resumed=True))
    outages.put([each for name in names for each in answers(name, bad=1)], NOTHING_CHANGED)
    outages.put(answers("shop-2", bad=10), NOTHING_CHANGED)

    assert {"shop-2"} == held.get(timeout=SOON)
    assert [None, None] == [hold_of(ledger, name) for name in ("shop-1", "shop-3")]


# -- what is away


def test_a_redis_that_is_silent_costs_nothing_but_the_count(
    network: Proxy, outages: Outages, held: SimpleQueue[frozenset[str] | int], logged: Logged
) -> None:
    network.stall()
    began = time.monotonic()
    for _ in range(100):
        outages.put(answers("shop-1", good=1), NOTHING_CHANGED)
    took = time.monotonic() - began
    assert "TimeoutError" == logged.wait_for("outages.unavailable")["error"]
    assert SILENT_SECONDS / 2 > took

    network.pass_on()
    logged.wait_for("outages.recovered")
    outages.put(answers("shop-2", bad=10), NOTHING_CHANGED)
    assert {"shop-2"} == held.get(timeout=SOON)


def test_a_redis_that_is_gone_costs_nothing_but_the_count(
    network: Proxy, outages: Outages, held: SimpleQueue[frozenset[str] | int], logged: Logged
) -> None:
    network.refuse()
    outages.put(answers("shop-1", bad=10), NOTHING_CHANGED)
    logged.wait_for("outages.unavailable")
    network.pass_on()
    outages.put(answers("shop-2", bad=10), NOTHING_CHANGED)

    assert {"shop-2"} == held.get(timeout=SOON)


@pytest.fixture
def claim(ledger: Engine) -> Callable[[int], list[SendClaim]]:
    def make_claims(count: int) -> list[SendClaim]:
        requests = [CancelRequest(connection_id="shop-1", order_id=f"o-{number}") for number in range(count)]
        transitions.accept_batch(ledger, requests)
        claimed, _ = transitions.claim_shares(ledger, {"shop-1": count}, "w-1", 60, {})
        return claimed["shop-1"]  # type: ignore[return-value]

    return make_claims


def test_no_record_waits_for_a_redis_that_is_silent(
    ledger: Engine, network: Proxy, outages: Outages, claim: Callable[[int], list[SendClaim]]
) -> None:
    committed: SimpleQueue[list[Result]] = SimpleQueue()

    def on_committed(results: list[Result], summary: CommitSummary) -> None:
        outages.put(results, summary)
        committed.put(results)

    recorder = Recorder(ledger, on_committed, on_refused=committed.put)  # type: ignore[arg-type]
    recorder.loop.start()
    network.stall()
    for each in claim(5):
        recorder.put(msgspec.structs.replace(answer("shop-1", 200), claim=each))
        assert [each] == [result.claim for result in committed.get(timeout=SILENT_SECONDS / 2)]
    assert recorder.stop(SOON)


def test_a_hold_that_the_ledger_could_not_keep_begins_with_the_next_failure(
    ledger: Engine, ledger_switch: LedgerSwitch, outages: Outages, held: SimpleQueue[frozenset[str] | int]
) -> None:
    ledger_switch.away()
    outages.put(answers("shop-1", bad=10), NOTHING_CHANGED)
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()
    outages.put(answers("shop-1", bad=1), NOTHING_CHANGED)

    assert {"shop-1"} == held.get(timeout=SOON)
    assert holds.OUTAGE == hold_of(ledger)


def test_what_is_more_than_it_may_keep_is_not_counted(
    redis: Redis, ledger: Engine, held: SimpleQueue[frozenset[str] | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    outages = Outages(redis, ledger, held.put)
    for name in ("shop-1", "shop-2", "shop-3"):
        outages.put(answers(name, good=1), NOTHING_CHANGED)

    outages._tick()

    (key,) = redis.keys()
    assert {b"shop-2 good": b"1", b"shop-3 good": b"1"} == redis.hgetall(key)
