"""`doctor`: what it sees, how it says it, and that it ends within ten seconds whatever is down."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from harness.parts import Proxy
from harness.raw_server import RawServer, whole
from harness.shell import Operator
from sqlalchemy import text

from worker.cli.doctor.asking import LIMIT_SECONDS, PATIENCE_SECONDS
from worker.dev.sandbox import Sandbox
from worker.ledger import backlog, connections, freshness
from worker.ledger.checkup import checkup
from worker.ledger.database import read_only
from worker.ledger.vault import TokenVault, of_connection
from worker.streams import INBOX

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis
    from sqlalchemy import Engine

TEN_SECONDS = 10.0
BUSY_SECONDS = 10.0  # what the command itself may take more where other tests have the processors


@pytest.fixture
def operator(tmp_path: Path, database_url: str, redis_url: str) -> Operator:
    return Operator(tmp_path, DATABASE_URL=database_url, REDIS_URL=redis_url)


def told(operator: Operator, *words: str) -> tuple[int, dict[str, Any]]:
    code, said = operator.run("doctor", "--json", *words)
    return code, json.loads(said)


def of(found: dict[str, Any], part: str) -> list[tuple[str, str]]:
    return [(each["colour"], each["said"]) for each in found["findings"] if each["part"] == part]


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_what_hangs_leaves_four_of_the_ten_seconds_to_the_command_itself() -> None:
    assert TEN_SECONDS - 4.0 >= LIMIT_SECONDS > PATIENCE_SECONDS


@pytest.mark.parametrize(
    "hung",
    [{"redis"}, {"postgresql"}, {"trackstar"}, {"redis", "postgresql", "trackstar", "flower", "sentry"}],
    ids=lambda hung: " and ".join(sorted(hung)),
)
def test_it_ends_within_ten_seconds_and_names_what_hangs(
    operator: Operator, ledger: Engine, hung: set[str], released: threading.Event
) -> None:
    def silent(_: socket.socket) -> None:
        released.wait()

    key = Fernet.generate_key().decode()
    with ledger.begin() as db:
        for name in ("shop-1", "shop-2", "shop-3"):
            connections.add(db, name, TokenVault([key]).encrypt("token"))
    with ExitStack() as stack:
        hole = stack.enter_context(Proxy(1))
        hole.stall()
        trackstar = stack.enter_context(RawServer(*([silent] if "trackstar" in hung else [whole()]) * 9))
        nowhere = f"127.0.0.1:{hole.port}"
        operator.environment |= {
            "CREDENTIAL_KEYS": key,
            "TRACKSTAR_API_KEY": "k",
            "TRACKSTAR_BASE_URL": trackstar.url,
            **({"REDIS_URL": f"redis://{nowhere}/0"} if "redis" in hung else {}),
            **({"DATABASE_URL": f"postgresql://me@{nowhere}/x"} if "postgresql" in hung else {}),
            **({"FLOWER_URL": f"http://{nowhere}"} if "flower" in hung else {}),
            **({"SENTRY_DSN": f"http://public@{nowhere}/1"} if "sentry" in hung else {}),
        }
        began = time.monotonic()
        code, found = told(operator, *(["--send-test"] if "sentry" in hung else []))
        took = time.monotonic() - began
        released.set()

    reds = {each["part"].partition(" ")[0] for each in found["findings"] if each["colour"] == "red"}
    expected = {"redis": "Redis", "postgresql": "Ledger", "sentry": "Sentry"}
    assert took < TEN_SECONDS + BUSY_SECONDS
    assert (1, "red") == (code, found["colour"])
    assert {expected[each] for each in hung & set(expected)} <= reds
    if hung == {"trackstar"}:
        assert "Connection" in reds
        assert [("yellow", "was not asked about 2 more: it does not answer, or slowly")] == of(found, "Trackstar")
    if "flower" in hung:
        assert ["yellow"] == [colour for colour, _ in of(found, "Flower")]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # readers of SQLite wait for nobody
def test_a_statement_that_waits_for_a_lock_is_not_waited_for(operator: Operator, ledger: Engine) -> None:
    with ledger.begin() as db:
        db.execute(text("LOCK TABLE alembic_version, connections, freshness IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        code, found = told(operator)
        took = time.monotonic() - began

    assert took < TEN_SECONDS + BUSY_SECONDS
    assert (1, [("red", f"does not answer within {LIMIT_SECONDS:g} s")]) == (code, of(found, "Ledger"))
    assert ("green", "rights complete") in of(found, "Redis")


def test_a_connection_is_asked_about_by_the_name_that_trackstar_has_for_it(ledger: Engine) -> None:
    with ledger.begin() as db:
        for name in ("shop-1", "shop-2"):
            connections.add(db, name, "encrypted")
        freshness.set_trackstar_id(db, "shop-1", "conn_9")
    with read_only(ledger) as db:
        found = backlog.survey(db, 10).chosen

    assert {"shop-1": "conn_9", "shop-2": "shop-2"} == {row.id: row.trackstar_id for row in found}


@pytest.mark.usefixtures("redis")
def test_where_all_is_well_it_is_green_and_shows_what_operators_look_for(operator: Operator, ledger: Engine) -> None:
    key = Fernet.generate_key().decode()
    with Sandbox("k") as sandbox, ledger.begin() as db:
        sandbox.world.connect("shop-1", "token", integration_name="shiphero")
        connections.add(db, "shop-1", TokenVault([key]).encrypt("token", of_connection("shop-1")))
        db.commit()
        operator.environment |= {"TRACKSTAR_API_KEY": "k", "TRACKSTAR_BASE_URL": sandbox.url, "CREDENTIAL_KEYS": key}
        _, found = told(operator)

    parts = {each["part"] for each in found["findings"]}
    assert {"Python", "Versions", "Setting", "Redis", "Inbox", "Ledger", "Credentials", "Workers", "Flower"} < parts
    assert [("green", "can be written, and is empty")] == of(found, "Inbox")
    ((colour, said),) = of(found, "Connection shop-1")
    assert ("green", True) == (colour, said.startswith("shiphero, cancel available, copy of its orders: "))
    assert said.endswith("50 writes/s")
    assert [("green", "CREDENTIAL_KEYS holds 1 key")] == of(found, "Credentials")
    about_redis, about_ledger = (" ".join(said for _, said in of(found, part)) for part in ("Redis", "Ledger"))
    for words in ("version ", "append-only file on", "memory ", "eviction noeviction", "rights complete", "clock "):
        assert words in about_redis
    for words in ("schema ", "UTF", "nothing is due", "clock "):
        assert words in about_ledger
    assert {"name": "CREDENTIAL_KEYS", "value": "1 set", "source": "environment"} in found["settings"]


def test_a_token_that_only_an_older_key_can_read_keeps_that_key(operator: Operator, ledger: Engine) -> None:
    new, old = (Fernet.generate_key().decode() for _ in range(2))
    with ledger.begin() as db:
        connections.add(db, "shop-1", TokenVault([old]).encrypt("token"))
    operator.environment |= {
        "TRACKSTAR_API_KEY": "k",
        "TRACKSTAR_BASE_URL": "http://127.0.0.1:1",
        "CREDENTIAL_KEYS": f"{new},{old}",
    }
    _, found = told(operator)

    assert ("yellow", "1 tokens need an older key than the first") in of(found, "Credentials")


@pytest.mark.usefixtures("ledger")
def test_what_waits_on_the_inbox_is_counted(operator: Operator, redis: Redis) -> None:
    redis.xadd(INBOX, {"job": "{}"}, id=f"{int((time.time() - 12) * 1000)}-0")
    _, found = told(operator)
    ((colour, said),) = of(found, "Inbox")

    assert ("yellow", True) == (colour, said.startswith("can be written; 1 wait, the first for 1"))


@pytest.mark.usefixtures("ledger")
def test_flower_is_asked_at_its_address_and_is_never_red(operator: Operator) -> None:
    with RawServer(whole(status=b"401 Unauthorized")) as flower:
        operator.environment["FLOWER_PORT"] = str(flower.port)
        _, there = told(operator)
    _, gone = told(operator)

    assert [("green", "answers (401)")] == of(there, "Flower")
    assert [("yellow", "does not answer (ConnectionError)")] == of(gone, "Flower")
    assert flower.heads[0].startswith(b"GET /healthcheck ")


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("status", "colour", "said"),
    [(b"200 OK", "green", "was taken"), (b"401 Unauthorized", "red", "was not taken (status_401)")],
)
def test_a_test_event_is_sent_to_sentry_and_its_answer_told(
    operator: Operator, status: bytes, colour: str, said: str
) -> None:
    with RawServer(*[whole(status=status)] * 9) as sentry:
        operator.environment["SENTRY_DSN"] = f"http://public@127.0.0.1:{sentry.port}/1"
        assert [] == sentry.heads
        _, found = told(operator, "--send-test")

    ((told_colour, told_said),) = of(found, "Sentry")
    assert (colour, True) == (told_colour, said in told_said)
    assert sentry.heads[0].startswith(b"POST /api/1/envelope/")


@pytest.mark.usefixtures("ledger")
def test_without_the_word_nothing_is_sent_to_sentry(operator: Operator) -> None:
    with RawServer(*[whole()] * 9) as sentry:
        operator.environment["SENTRY_DSN"] = f"http://public@127.0.0.1:{sentry.port}/1"
        _, found = told(operator)

    assert (["green"], []) == ([colour for colour, _ in of(found, "Sentry")], sentry.heads)


def test_a_database_says_what_it_is(ledger: Engine) -> None:
    with read_only(ledger) as db:
        found = checkup(db)

    assert found.kind.lower() == db.dialect.name
    assert found.size > 10_000
    assert (found.vacuum is not None) == (found.kind == "PostgreSQL")
    assert found.encoding in {"UTF8", "UTF-8"}
