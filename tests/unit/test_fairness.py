"""Whose turn it is: no connection takes all threads, none waits for ever, and what is free is lent."""

from __future__ import annotations

import inspect
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import Column, MetaData, String, Table, create_engine, select

import worker
from worker.cancellation.fairness import (
    AGING_BATCH,
    PRIORITY_RANK,
    aging_quota,
    fair_limit,
    reserve_size,
    round_robin,
    round_robin_order,
    turn_key,
)
from worker.cancellation.request import Priority
from worker.ledger.dialects import UtcTimestamp
from worker.ledger.schema import IN_TURN

SIZES = st.integers(1, 500)


@given(SIZES, st.data())
def test_a_connection_with_nothing_in_flight_always_gets_a_free_thread(capacity: int, data: st.DataObject) -> None:
    free = data.draw(st.integers(1, capacity))

    assert fair_limit(0, free, capacity, data.draw(st.integers(1, 1000))) >= 1


@given(SIZES, st.data())
def test_nobody_gets_more_than_is_free(capacity: int, data: st.DataObject) -> None:
    free = data.draw(st.integers(0, capacity))
    own = data.draw(st.integers(0, capacity - free))

    assert 0 <= fair_limit(own, free, capacity, data.draw(st.integers(1, 1000))) <= free


@given(st.integers(2, 500))
def test_alone_it_borrows_everything_but_the_reserve(capacity: int) -> None:
    own, free = 0, capacity
    while more := fair_limit(own, free, capacity, 1):
        own, free = own + more, free - more

    assert own == max(1, capacity - reserve_size(capacity))
    assert free >= 1


@given(st.integers(2, 500), st.integers(2, 20))
def test_floods_end_up_within_their_even_shares(capacity: int, floods: int) -> None:
    assume(capacity >= 4 * floods)
    own = dict.fromkeys(range(floods), 0)
    for _ in range(capacity):
        for name, mine in own.items():
            free = capacity - sum(own.values())
            own[name] = mine + min(1, fair_limit(mine, free, capacity, floods))

    assert max(own.values()) - min(own.values()) <= 1
    assert capacity - sum(own.values()) >= 1


@given(st.integers(0, 300), st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 50), max_size=20))
def test_seats_are_dealt_in_turn_and_none_is_left_while_somebody_wants_one(room: int, wants: dict[str, int]) -> None:
    dealt = round_robin(room, list(wants.items()))

    assert sum(dealt.values()) == min(room, sum(wants.values()))
    assert all(dealt[name] <= wants[name] for name in dealt)
    hungry = [dealt.get(name, 0) for name, want in wants.items() if dealt.get(name, 0) < want]
    if hungry:
        assert max(dealt.values(), default=0) - min(hungry) <= 1


@given(st.lists(st.integers(1, 40), max_size=300))
def test_every_eighth_send_slot_goes_by_waiting_time_within_one_batch(counts: list[int]) -> None:
    sent = by_age = 0
    for count in counts:
        old = aging_quota(sent, by_age, count)
        assert 0 <= old <= min(count, AGING_BATCH + count // 8)
        sent, by_age = sent + count, by_age + old

        assert by_age <= sent / 8 <= by_age + AGING_BATCH + 5


@given(st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=10))
def test_whoever_was_served_last_is_last_in_the_next_round(names: list[str]) -> None:
    last, served = None, Counter[str]()
    for _ in range(3 * len(names)):
        last = round_robin_order(names, last)[0]
        served[last] += 1

    assert set(served.values()) <= {3}


# ---- whose turn it is within a connection

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
EARLIER, LATER = NOON - timedelta(hours=1), NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(("urgent", None, LATER), ("normal", EARLIER, EARLIER), id="urgent before normal"),
        pytest.param(("normal", None, LATER), ("bulk", EARLIER, EARLIER), id="normal before bulk"),
        pytest.param(("normal", EARLIER, LATER), ("normal", LATER, EARLIER), id="the earlier send_by"),
        pytest.param(("normal", LATER, LATER), ("normal", None, EARLIER), id="any send_by before none"),
        pytest.param(("normal", NOON, EARLIER), ("normal", NOON, LATER), id="first come, with a send_by"),
        pytest.param(("normal", None, EARLIER), ("normal", None, LATER), id="first come, without one"),
    ],
)
def test_urgent_goes_first_then_the_earliest_send_by_then_first_come(first: Any, second: Any) -> None:
    assert [first, second] == sorted([second, first], key=lambda each: turn_key(*each))


def test_a_send_by_is_an_instant_wherever_it_was_written() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))

    assert turn_key("normal", NOON, NOON) == turn_key("normal", elsewhere, NOON)


def test_every_priority_that_a_job_may_have_has_a_rank_of_its_own() -> None:
    assert set(get_args(Priority)) == PRIORITY_RANK.keys()
    assert ["urgent", "normal", "bulk"] == sorted(PRIORITY_RANK, key=PRIORITY_RANK.__getitem__)
    assert len(PRIORITY_RANK) == len(set(PRIORITY_RANK.values()))


def test_the_order_of_sql_is_the_same_order() -> None:
    times = [EARLIER, NOON, LATER]
    turns = [
        {"priority": priority, "send_by": send_by, "requested_at": at}
        for priority, send_by, at in product(PRIORITY_RANK, [None, *times], times)
    ]
    random.Random(5).shuffle(turns)
    table = Table(
        "cancellations",
        MetaData(),
        Column("priority", String),
        Column("send_by", UtcTimestamp),
        Column("requested_at", UtcTimestamp),
    )
    engine = create_engine("sqlite://")
    with engine.begin() as db:
        table.create(db)
        db.execute(table.insert(), turns)
        in_turn = [dict(row._mapping) for row in db.execute(select(table).order_by(*IN_TURN))]
    engine.dispose()

    assert sorted(turns, key=lambda each: turn_key(**each)) == in_turn


def test_nobody_else_writes_that_order_down() -> None:
    package = Path(inspect.getfile(worker)).parent
    words = {
        path: set(re.findall(r"['\"](urgent|normal|bulk)['\"]", path.read_text())) for path in package.rglob("*.py")
    }

    assert {"cancellation/fairness.py", "cancellation/request.py"} == {
        str(path.relative_to(package)) for path, found in words.items() if len(found) > 1
    }
