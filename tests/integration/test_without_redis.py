"""A part that is away or refuses: a cancel goes out without its pace, and one refused row does not stop the others."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis, ResponseError
from sqlalchemy import select

from worker.cancellation.answer import NoReply, Reply
from worker.ledger import queries
from worker.ledger.dialects import is_sqlite
from worker.ledger.schema import dead_letters
from worker.runtime.intake import Intake
from worker.streams import GROUP, INBOX, put_jobs
from worker.telemetry.health import Vitals
from worker.trackstar.pacing import LATE_SECONDS, Pace, SendSlot

if TYPE_CHECKING:
    from conftest import Logged
    from sqlalchemy import Engine

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def pace() -> Pace:
    """The pace of a worker whose Redis is away."""
    return Pace(Redis.from_url(NOWHERE), 50, 10)


def test_a_cancel_that_is_late_for_its_slot_goes_out_without_another(pace: Pace, logged: Logged) -> None:
    late = SendSlot(time.monotonic() - 10 * LATE_SECONDS, 50.0, saturated=True)

    assert pace.wait_to_write("shop-1", late, time.monotonic() + 10)

    line = logged.wait_for("pace.redis_away")
    assert ("warning", "ConnectionError") == (line["level"], line["error"])
    assert [] == logged.events()  # it asked once


def test_a_cancel_whose_slot_is_still_good_does_not_ask_redis(pace: Pace, logged: Logged) -> None:
    slot = SendSlot(time.monotonic() + 0.05, 50.0, saturated=False)

    assert pace.wait_to_write("shop-1", slot, slot.send_at + 10)
    assert time.monotonic() >= slot.send_at
    assert [] == logged.events()


def test_an_order_is_read_back_without_a_slot(pace: Pace, logged: Logged) -> None:
    assert pace.wait_to_read("shop-1")
    assert ["pace.redis_away"] == logged.events()


@pytest.mark.parametrize("kind", ["cancel", "read"])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Reply(status=HTTPStatus.TOO_MANY_REQUESTS, retry_after=3.0), id="too fast"),
        pytest.param(Reply(status=HTTPStatus.OK, rate_limit=5.0), id="a lower limit"),
    ],
)
def test_what_the_server_says_of_the_pace_is_lost_and_the_answer_is_not(
    pace: Pace, logged: Logged, kind: str, answer: Reply
) -> None:
    pace.observe(kind, "shop-1", answer)

    assert ["pace.redis_away"] == logged.events()


def test_no_answer_says_nothing_of_the_pace(pace: Pace, logged: Logged) -> None:
    pace.observe("cancel", "shop-1", NoReply("timeout", sent=True))

    assert [] == logged.events()


# ---- a ledger that refuses one row

REFUSED = "refused"
SQLITE_REFUSES = (
    f"CREATE TRIGGER refuses BEFORE INSERT ON cancellations WHEN NEW.order_id = '{REFUSED}' "
    "BEGIN SELECT RAISE(ABORT, 'refused'); END"
)
POSTGRES_REFUSES = f"ALTER TABLE cancellations ADD CONSTRAINT refuses CHECK (order_id <> '{REFUSED}')"


def raw(order_id: str) -> bytes:
    return json.dumps({"connection_id": "shop-1", "order_id": order_id}).encode()


def test_a_row_that_the_ledger_refuses_is_a_dead_letter_and_its_neighbours_are_stored(
    redis: Redis, ledger: Engine, logged: Logged
) -> None:
    with ledger.begin() as db:
        db.exec_driver_sql(SQLITE_REFUSES if is_sqlite(ledger.dialect.name) else POSTGRES_REFUSES)
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    told: list[set[str]] = []
    put_jobs(redis, [raw("before"), b"{", raw(REFUSED), raw("behind")])

    assert 4 == Intake(redis, ledger, "w-1", told.append, Vitals()).take()

    with ledger.connect() as db:
        stored = {row.order_id for row in queries.find(db)}
        kept = [tuple(row) for row in db.execute(select(dead_letters.c.raw, dead_letters.c.reason))]
        (error,) = db.execute(select(dead_letters.c.error).where(dead_letters.c.raw == raw(REFUSED))).scalars()
    assert {"before", "behind"} == stored
    assert {(b"{", "not_json"), (raw(REFUSED), "refused_by_ledger")} == set(kept)
    assert 2 == len(kept)
    assert error.startswith("The ledger refused it: ")
    assert REFUSED not in error.removeprefix("The ledger refused it")
    assert [{"shop-1"}] == told
    assert 0 == redis.xlen(INBOX)
    requested = ["cancellation.requested"] * 2
    assert ["dead_letter.kept", "dead_letter.kept", *requested] == logged.events()


# ---- two intakes on an empty Redis


class LateRedis(Redis):
    """The Redis of a worker that another one is always just ahead of: the group is there when it makes it."""

    def xgroup_create(self, *args: Any, **options: Any) -> Any:
        super().xgroup_create(*args, **options)
        with pytest.raises(ResponseError, match="BUSYGROUP"):
            super().xgroup_create(*args, **options)
        return super().xgroup_create(*args, **options)


def test_an_intake_does_not_mind_that_another_made_the_group(redis_url: str, ledger: Engine, logged: Logged) -> None:
    with LateRedis.from_url(redis_url) as late:
        put_jobs(late, [raw("o-1")])
        intake = Intake(late, ledger, "w-1", lambda _: None, Vitals())
        intake.loop.start()
        line = logged.wait_for("cancellation.requested")
        intake.stop()

    assert "o-1" == line["order_id"]
    assert [] == logged.events()
