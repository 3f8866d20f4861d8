"""The commands about producers, as a person types them; and what doctor and the series say of their inboxes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import settings_of_commands, with_lines

from worker.cli.doctor.redis import look_at_redis
from worker.ledger import audit, producers
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.runtime.gauges import LedgerGauges
from worker.runtime.transport import Transport
from worker.settings import load_settings
from worker.streams import INBOX, inbox_of, put_jobs
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import MakeDatabase
    from redis import Redis
    from sqlalchemy import Engine

WHO = ("--as", "Bea")
WHY = ("--reason", "asked by phone", *WHO)
OMS = inbox_of("oms-a")
JOB = b'{"connection_id": "shop-1", "order_id": "o-1"}'
Run = tuple[int, str]


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """One kind only: the statements are shown on both elsewhere."""
    return make_database("sqlite")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, redis_url: str
) -> Iterator[Callable[..., Run]]:
    """Run a command in this process; return its exit code and what it said."""
    with settings_of_commands(monkeypatch, {"DATABASE_URL": database_url, "REDIS_URL": redis_url}):
        yield with_lines(monkeypatch, capsys)


def acts(ledger: Engine) -> list[tuple[str, str, str | None, str | None, Any, Any]]:
    with ledger.connect() as db:
        found = audit.find(db, kind="producer")
    return [(each.action, each.actor, each.target_id, each.reason, each.before, each.after) for each in found[::-1]]


def test_a_producer_is_added_changed_shown_and_removed_and_each_is_an_act(
    run: Callable[..., Run], ledger: Engine
) -> None:
    code, said = run("producers", "add", "oms-a", "--connections", "b, a", "--urgent", "--per-second", "5", *WHO)
    assert 0 == code, said
    assert f"user producer-oms-a on #SHA256-OF-ITS-PASSWORD resetchannels resetkeys %W~{OMS} -@all +xadd" in said

    changes = ("--connections", "all", "--not-urgent", "--per-second", "0")
    assert 0 == run("producers", "change", "oms-a", *changes, *WHY)[0]
    code, said = run("producers", "show", "oms-a", "--json")
    shown = json.loads(said)
    assert (None, False, None, "Bea", OMS) == tuple(
        shown[name] for name in ("connections", "urgent", "per_second", "created_by", "inbox")
    )
    assert "as they come" in run("producers", "show", "oms-a")[1]
    assert ["oms-a"] == [json.loads(line)["name"] for line in run("producers", "list", "--json")[1].splitlines()]
    assert "oms-a" in run("producers", "list")[1]
    assert 0 == run("producers", "remove", "oms-a", *WHY)[0]

    given = {"connections": ["a", "b"], "urgent": True, "per_second": 5.0}
    free = {"connections": "all", "urgent": False, "per_second": None}
    assert [
        ("add", "Bea", "oms-a", None, None, given),
        ("change", "Bea", "oms-a", "asked by phone", given, free),
        ("remove", "Bea", "oms-a", "asked by phone", free, {}),
    ] == [(*act[:5], act[5] or {}) for act in acts(ledger)]


WRONG = {
    "a name with a colon": (("add", "a:b"), "is no producer's name"),
    "a name beside the inbox": (("add", "ahead"), "is the name of a key beside the inbox"),
    "a connection that cannot be": (("add", "x", "--connections", "a,,b"), "is empty"),
    "a rate that cannot be": (("add", "x", "--per-second", "0.001"), "--per-second is 0.001"),
    "twice": (("add", "known"), "is there already"),
    "nothing to change": (("change", "known"), "say what"),
    "an unknown one": (("change", "nobody", "--urgent"), "There is no producer nobody"),
    "no reason": (("remove", "known"), "say why"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_a_sentence_and_is_no_act(
    run: Callable[..., Run], ledger: Engine, name: str
) -> None:
    words, sentence = WRONG[name]
    with ledger.begin() as db:
        producers.add(db, "known", by="Bea")

    code, said = run("producers", *words)
    assert 2 == code
    assert sentence in " ".join(said.replace("│", " ").split())
    assert [] == acts(ledger)


def test_a_dead_letter_of_a_producer_is_sent_again_under_its_own_rights(
    run: Callable[..., Run], ledger: Engine, redis: Any
) -> None:
    letter = DeadLetter(source=OMS, entry_id="1-1", raw=JOB, reason="connection_not_allowed", error="no")
    with ledger.begin() as db:
        insert_dead_letters(db, [letter])

    assert 0 == run("dead-letters", "requeue", "1", *WHO)[0]
    assert (1, 0) == (redis.xlen(OMS), redis.xlen(INBOX))


def test_doctor_names_the_inbox_of_each_producer(run: Callable[..., Run], redis: Any) -> None:
    assert 0 == run("producers", "list")[0]
    redis.lpush(inbox_of("broken"), "x")
    redis.xadd(inbox_of("slow"), {"job": JOB}, id="1-1")
    put_jobs(redis, [JOB], inbox=OMS)
    found = {each.part: each for each in look_at_redis(load_settings()) if each.part.startswith("Inbox")}

    assert {"Inbox", "Inbox broken", "Inbox oms-a", "Inbox slow"} == set(found)
    assert "green" == found["Inbox oms-a"].colour
    assert ("red", True) == (found["Inbox broken"].colour, "is a list and no stream" in found["Inbox broken"].remedy)
    assert ("yellow", True) == (found["Inbox slow"].colour, "producers show slow" in found["Inbox slow"].remedy)


def test_one_look_sees_each_inbox_that_is_not_emptied(redis: Redis) -> None:
    put_jobs(redis, [JOB], inbox=OMS)
    nobody, of_oms = Transport(redis).look_at([INBOX, OMS], "w-1")

    assert ("", True) == (nobody.first, bool(of_oms.first))
    assert (INBOX, OMS) == (nobody.stream, of_oms.stream)


def test_the_series_tell_what_waits_of_each_producer_and_of_all(redis: Redis, ledger: Engine) -> None:
    metrics = Metrics()
    put_jobs(redis, [JOB] * 3, inbox=OMS)
    put_jobs(redis, [JOB])
    streams = (INBOX, OMS, inbox_of("idle"))
    gauges = LedgerGauges(
        redis, ledger, metrics, writes_per_second=50, reads_per_second=10, names=False, inboxes=lambda: streams
    )
    gauges.tick()

    text = metrics.render().decode()
    assert 'cancel_worker_producer_inbox_entries{producer="oms-a"} 3.0' in text
    assert 'cancel_worker_producer_inbox_entries{producer="idle"} 0.0' in text
    assert "cancel_worker_inbox_lag 4.0" in text
