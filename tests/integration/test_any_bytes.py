"""Any bytes, wherever a value comes from outside: nothing raises, nothing else is touched, nothing gets lost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from worker.cancellation.answer import read_reply
from worker.cancellation.lifecycle import Moment, State, decide, must_read
from worker.cancellation.outcome import Kind, OrderState, ReadBack, classify, classify_read
from worker.cancellation.policy import Policy
from worker.cancellation.status import safe_to_refund
from worker.environment import SettingsError
from worker.inputs.headers import LimitProblem, read_rate_limit, read_retry_after
from worker.inputs.text import visible
from worker.ledger.schema import cancellations, dead_letters
from worker.runtime.celery_inbox import CeleryInbox
from worker.runtime.intake import Intake
from worker.runtime.outages import AnswerTally
from worker.settings import Settings, load_settings
from worker.streams import CELERY_LIST, GROUP, INBOX
from worker.telemetry.health import Vitals
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CAP = 900.0
# One database, one Redis, many values: what a value leaves behind is what the next one meets.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
ANY = st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
STATUSES = st.integers(100, 599)
LIKE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


def encoded(document: object) -> bytes:
    import json  # noqa: PLC0415

    return json.dumps(document).encode()


@given(header=st.text(max_size=60), date=st.none() | st.text(max_size=40))
def test_any_header_is_a_bounded_number_or_nothing(header: str, date: str | None) -> None:
    wait = read_retry_after(header, date=date, now=NOW, cap=CAP)
    limit = read_rate_limit(header)

    assert wait is None or 0 <= wait <= CAP
    assert limit is None or isinstance(limit, LimitProblem) or 0.1 <= limit < float("inf")


@given(status=STATUSES, content=ANY | LIKE_JSON.map(encoded))
def test_any_body_is_read_and_none_but_a_cancelled_order_makes_a_refund_safe(status: int, content: bytes) -> None:
    reply = read_reply(status, content)
    outcome, state = classify(reply, "o-1"), State(attempts=0, first_sent_at=NOW)
    read = classify_read(reply, "o-1")
    found = read if must_read(state, outcome) else None
    transition = decide(state, outcome, found, Moment(now=NOW, jitter=0.5, policy=Policy()))
    shown = [order.status for order in reply.orders]

    if safe_to_refund(transition.status, transition.verdict) == "yes":
        assert "cancelled" in shown
    assert read.shows is not OrderState.CANCELLED or "cancelled" in shown
    assert isinstance(read, ReadBack)
    assert outcome.kind in Kind


@pytest.fixture
def intake(redis: Redis, ledger: Engine) -> Intake:
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    return Intake(redis, ledger, "w-1", lambda _: None, Vitals())


def kept(ledger: Engine) -> int:
    with ledger.connect() as db:
        tables = (cancellations, dead_letters)
        return sum(db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def emptied(redis: Any, intake: Intake) -> bool:
    while redis.xlen(INBOX):
        intake.take()
    return redis.xpending(INBOX, GROUP)["pending"] == 0


@SHARED
@given(
    fields=st.dictionaries(st.sampled_from([b"job", b"celery", b"celery_unacked"]) | ANY, ANY, min_size=1, max_size=3)
)
def test_any_entry_becomes_a_row_or_a_dead_letter(
    redis: Any, ledger: Engine, intake: Intake, fields: dict[bytes, bytes]
) -> None:
    before = kept(ledger)
    redis.xadd(INBOX, fields)

    assert emptied(redis, intake)
    assert before + 1 == kept(ledger)


@SHARED
@given(message=ANY | LIKE_JSON.map(encoded))
def test_any_message_on_the_celery_list_becomes_a_row_or_a_dead_letter(
    redis: Any, ledger: Engine, intake: Intake, message: bytes
) -> None:
    before = kept(ledger)
    redis.lpush(CELERY_LIST, message)
    CeleryInbox(redis, Vitals()).move()

    assert 0 == redis.llen(CELERY_LIST)
    assert emptied(redis, intake)
    assert before + 1 == kept(ledger)


@SHARED
@given(fields=st.dictionaries(st.sampled_from([b"next", b"limit"]) | ANY, ANY, min_size=1, max_size=3))
def test_any_content_of_a_pace_key_concerns_its_connection_alone_and_for_a_minute_at_most(
    redis: Any, fields: dict[bytes, bytes]
) -> None:
    pacing = Pacing(redis, "w")
    redis.delete(pacing.key("shop-1"), pacing.key("shop-2"))
    redis.hset(pacing.key("shop-1"), mapping=fields)
    slots = pacing.reserve({"shop-1": (50.0, 1), "shop-2": (50.0, 1)})

    assert 1 == slots["shop-2"].count
    assert (pacing.ahead("shop-1") or 0.0) <= 61


@SHARED
@given(fields=st.dictionaries(ANY, ANY, min_size=1, max_size=4))
def test_any_content_of_a_tally_holds_nobody(redis: Any, fields: dict[bytes, bytes]) -> None:
    redis.flushall()
    period = redis.time()[0] // 10
    for each in (period - 1, period, period + 1):
        redis.hset(f"cancellations:answers:{each}", mapping=fields)

    assert frozenset() == AnswerTally(redis)._evaluate(period).connections  # `count` reads them only beside a failure


NAMES = sorted(name.upper() for name in Settings.model_fields)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(name=st.sampled_from(NAMES), value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60))
def test_any_value_of_any_setting_is_taken_or_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with monkeypatch.context() as patch:
        for each in NAMES:
            patch.delenv(each, raising=False)
        patch.setenv(name, value)
        load_settings.cache_clear()
        try:
            load_settings()
        except SettingsError as error:
            assert name in str(error)  # noqa: PT017 - it may also be taken
        finally:
            load_settings.cache_clear()


@given(st.text())
def test_any_text_is_safe_to_show(text: str) -> None:
    assert visible(text).isprintable()
