"""What an OMS gets from `from worker import CancelClient`: one record per intent, a true answer to each question."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.deployment import PASSED_ON
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from worker import CancelClient
from worker.cancellation.request import CancelRequest, InvalidRequest
from worker.cancellation.status import SafeToRefund
from worker.dev.embedded import free_port
from worker.errors import (
    AlreadyEndedError,
    InboxUnavailableError,
    KeyConflictError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.ledger import transitions
from worker.ledger.schema import cancellations
from worker.runtime.intake import Intake
from worker.streams import GROUP, INBOX
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

NOBODY = "00000000-0000-5000-8000-000000000000"


@pytest.fixture
def client(redis_url: str, database_url: str) -> Iterator[CancelClient]:
    client = CancelClient(redis_url, database_url)
    yield client
    client.close()


@pytest.fixture
def intake(redis: Redis, ledger: Engine) -> Intake:
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    return Intake(redis, ledger, "w-1", lambda _: None, Vitals())


def ask(client: CancelClient) -> None:
    assert client.get(NOBODY) is None


def withdraw(client: CancelClient) -> None:
    with pytest.raises(UnknownCancellationError):
        client.withdraw(NOBODY)


def use_a_key_twice(client: CancelClient) -> None:
    with pytest.raises(KeyConflictError):
        client.enqueue("shop-1", "o-2", idempotency_key="k")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has no connections to cut
@pytest.mark.parametrize("act", [ask, withdraw, use_a_key_twice])
def test_a_client_whose_idle_connections_were_cut_does_not_notice(
    client: CancelClient, ledger: Engine, act: Callable[[CancelClient], None]
) -> None:
    with ledger.begin() as connection:
        transitions.accept(connection, [CancelRequest(connection_id="shop-1", order_id="o-1", idempotency_key="k")])
    ask(client)
    with ledger.begin() as connection:
        others = (
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = current_database()"
        )
        cut = connection.exec_driver_sql(f"{others} AND pid <> pg_backend_pid()").scalar_one()

    assert cut >= 1
    act(client)


def end(ledger: Engine, record_id: str, **known: Any) -> None:
    """Let a worker have ended this one."""
    values = {"status": "succeeded", "verdict": "cancelled", "ended_at": datetime.now(UTC), **known}
    with ledger.begin() as connection:
        connection.execute(update(cancellations).where(cancellations.c.id == record_id).values(**values))


def jobs(redis: Any) -> list[dict[str, Any]]:
    return [json.loads(fields[b"job"]) for _, fields in redis.xrange(INBOX)]


def test_a_job_is_one_entry_with_what_its_producer_stated(client: CancelClient, redis: Redis) -> None:
    before = datetime.now(UTC)
    client.enqueue(
        "shop-1", "o-1", priority="urgent", send_by=before + timedelta(hours=1), metadata={"a": 1}, reason="r"
    )
    (job,) = jobs(redis)
    requested_at = datetime.fromisoformat(job.pop("requested_at"))

    assert before <= requested_at <= datetime.now(UTC)
    assert before + timedelta(hours=1) == datetime.fromisoformat(job.pop("send_by"))
    assert {
        "connection_id": "shop-1",
        "order_id": "o-1",
        "priority": "urgent",
        "reason": "r",
        "metadata": {"a": 1},
    } == job


def test_the_same_intent_is_the_same_record(client: CancelClient, intake: Intake) -> None:
    ids = [client.enqueue("shop-1", "o-1"), client.enqueue("shop-1", "o-1", reason="again")]
    other = [client.enqueue("shop-2", "o-1"), client.enqueue("shop-1", "o-1", idempotency_key="another intent")]
    intake.take()

    assert ids[0] == ids[1]
    assert 3 == len({*ids, *other})
    found = client.get(ids[0])
    assert found is not None
    assert ("pending", "cancel:o-1", None) == (found.status, found.idempotency_key, found.reason)


def test_a_key_of_another_order_is_refused_before_anything_is_sent(
    client: CancelClient, intake: Intake, redis: Redis
) -> None:
    client.enqueue("shop-1", "o-1", idempotency_key="k")
    intake.take()

    with pytest.raises(KeyConflictError, match=r"'k'.*'o-1'.*'o-2'"):
        client.enqueue("shop-1", "o-2", idempotency_key="k")
    assert [] == jobs(redis)


def test_a_key_of_another_order_among_many_stops_all_before_the_first_is_sent(
    client: CancelClient, intake: Intake, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.CHUNK", 2)
    client.enqueue("shop-1", "o-1", idempotency_key="k")
    intake.take()

    with pytest.raises(KeyConflictError, match="'k'"):
        client.enqueue_many(
            [{"connection_id": "shop-1", "order_id": f"o-{number}"} for number in range(2, 6)]
            + [{"connection_id": "shop-1", "order_id": "o-6", "idempotency_key": "k"}]
        )
    assert 0 == redis.xlen(INBOX)


def test_a_ledger_that_goes_away_after_it_said_that_all_has_ended_is_no_other_error(
    client: CancelClient, intake: Intake, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_id = client.enqueue("shop-1", "o-1")
    intake.take()
    end(ledger, record_id)

    def get(*_: object) -> None:
        raise LedgerUnavailableError("away")

    monkeypatch.setattr(client, "get", get)
    with pytest.raises(AlreadyEndedError, match="o-1") as raised:
        client.enqueue("shop-1", "o-1")
    assert ((), [record_id]) == (raised.value.cancellations, raised.value.ids)


def test_many_jobs_keep_their_order(client: CancelClient, intake: Intake, redis: Redis) -> None:
    ids = client.enqueue_many({"connection_id": "shop-1", "order_id": f"o-{n}"} for n in range(2500))

    assert [f"o-{n}" for n in range(2500)] == [job["order_id"] for job in jobs(redis)]
    while intake.take():
        pass
    assert ["o-0", "o-2499"] == [found.order_id for found in map(client.get, (ids[0], ids[-1])) if found]


def test_one_bad_job_among_many_stops_all_before_the_first_is_sent(client: CancelClient, redis: Redis) -> None:
    with pytest.raises(InvalidRequest, match="order_id"):
        client.enqueue_many([{"connection_id": "s", "order_id": "o-1"}, {"connection_id": "s", "order_id": ""}])

    assert [] == jobs(redis)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("order_id", "."),
        ("order_id", "a\nb"),
        ("order_id", 17),
        ("connection_id", ""),
        ("priority", "asap"),
        ("send_by", datetime(2030, 1, 1)),  # noqa: DTZ001 - that is what is wrong with it
        ("metadata", {"a": float("nan")}),
        ("metadata", {"a": "x" * 5000}),
        ("metadata", {"a": {"b": 1}}),
    ],
)
def test_a_bad_job_is_refused_at_once_by_its_field(
    client: CancelClient, redis: Redis, field: str, wrong: object
) -> None:
    job: dict[str, Any] = {"connection_id": "s", "order_id": "o", field: wrong}
    with pytest.raises(InvalidRequest, match=field):
        client.enqueue(**job)

    assert [] == jobs(redis)


# -- in the producer's own transaction


def test_a_job_in_the_producers_own_transaction_is_accepted_when_that_commits(
    client: CancelClient, ledger: Engine, redis: Redis
) -> None:
    with Session(ledger) as session:
        record_id = client.enqueue("shop-1", "o-1", session=session, metadata={"a": 1})
        session.commit()

    found = client.get(record_id)
    assert found is not None
    assert ("pending", "o-1", {"a": 1}) == (found.status, found.order_id, found.metadata)
    assert [] == jobs(redis)


def test_a_job_in_the_producers_own_transaction_never_was_when_that_rolls_back(
    client: CancelClient, ledger: Engine, redis: Redis
) -> None:
    with Session(ledger) as session:
        record_id = client.enqueue("shop-1", "o-1", session=session)
        session.rollback()

    assert client.get(record_id) is None
    assert [] == jobs(redis)


def test_a_connection_of_the_core_serves_as_a_session_too(client: CancelClient, ledger: Engine) -> None:
    with ledger.begin() as connection:
        record_id = client.enqueue("shop-1", "o-1", session=connection)

    assert client.get(record_id) is not None


def test_a_key_of_another_order_is_refused_in_the_producers_own_transaction(
    client: CancelClient, ledger: Engine
) -> None:
    with Session(ledger) as session:
        client.enqueue("shop-1", "o-1", idempotency_key="k", session=session)
        with pytest.raises(KeyConflictError, match="'k'"):
            client.enqueue("shop-1", "o-2", idempotency_key="k", session=session)


# -- asking


def test_waiting_returns_as_soon_as_it_has_ended(client: CancelClient, intake: Intake, ledger: Engine) -> None:
    record_id = client.enqueue("shop-1", "o-1")
    intake.take()
    worker = threading.Timer(0.3, end, (ledger, record_id))
    worker.start()
    ended = client.wait(record_id, 10)
    worker.join()

    assert ("succeeded", SafeToRefund.YES) == (ended.status, ended.safe_to_refund)


def test_waiting_in_vain_says_where_it_stands(client: CancelClient, intake: Intake) -> None:
    record_id = client.enqueue("shop-1", "o-1")
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="not in the ledger yet"):
        client.wait(record_id, 0.1)
    intake.take()
    with pytest.raises(TimeoutError, match=r"is pending after 0\.1 s"):
        client.wait(record_id, 0.1)

    assert time.monotonic() - started < 5


def test_nothing_is_known_of_what_never_was(client: CancelClient) -> None:
    assert client.get(NOBODY) is None
    assert SafeToRefund.NOT_YET == client.safe_to_refund(NOBODY)


@pytest.mark.parametrize("name", ["", "no id at all", "'; --", "x" * 1000, "00000000000050008000000000000000"])
def test_an_id_that_is_none_is_nobodys(client: CancelClient, name: str) -> None:
    assert client.get(name) is None
    assert SafeToRefund.NOT_YET == client.safe_to_refund(name)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("yes", "cancelled"), ("no", "not_cancelled"), ("not yet", "accepted"), ("not yet", "unknown")],
)
def test_the_one_question_of_support_is_answered_by_the_verdict(
    client: CancelClient, intake: Intake, ledger: Engine, answer: str, verdict: str
) -> None:
    record_id = client.enqueue("shop-1", "o-1")
    intake.take()
    assert SafeToRefund.NOT_YET == client.safe_to_refund(record_id)
    end(ledger, record_id, verdict=verdict)

    assert answer == client.safe_to_refund(record_id)


def test_what_was_not_sent_can_be_withdrawn_once(client: CancelClient, intake: Intake) -> None:
    record_id = client.enqueue("shop-1", "o-1")
    intake.take()
    client.withdraw(record_id)

    assert "withdrawn" == client.wait(record_id, 1).status
    with pytest.raises(TooLateError, match="is withdrawn"):
        client.withdraw(record_id)


def test_what_nobody_knows_can_not_be_withdrawn(client: CancelClient) -> None:
    with pytest.raises(UnknownCancellationError, match=NOBODY):
        client.withdraw(NOBODY)


# -- parts that are away


def test_a_redis_that_is_away_is_told_in_a_sentence(database_url: str) -> None:
    client = CancelClient(f"redis://127.0.0.1:{free_port()}/0", database_url)
    with pytest.raises(InboxUnavailableError, match="enqueue again"):
        client.enqueue("shop-1", "o-1")

    client.close()


def test_a_ledger_that_is_away_stops_nobody_from_enqueuing(redis_url: str, redis: Redis) -> None:
    client = CancelClient(redis_url, f"postgresql://127.0.0.1:{free_port()}/nothing")
    record_id = client.enqueue("shop-1", "o-1")

    assert ["o-1"] == [job["order_id"] for job in jobs(redis)]
    for question in (client.get, client.withdraw, client.safe_to_refund):
        with pytest.raises(LedgerUnavailableError, match="DATABASE_URL"):
            question(record_id)
    client.close()


def test_a_ledger_that_was_not_migrated_is_told_in_a_sentence(redis_url: str, empty_database_url: str) -> None:
    client = CancelClient(redis_url, empty_database_url)
    with pytest.raises(LedgerUnavailableError, match="cancel-worker migrate"):
        client.get(NOBODY)
    client.close()


def test_without_a_database_it_can_only_enqueue(redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    client = CancelClient(redis_url)
    record_id = client.enqueue("shop-1", "o-1")

    assert 1 == len(jobs(redis))
    with pytest.raises(LedgerUnavailableError, match="Set DATABASE_URL"):
        client.get(record_id)
    client.close()


# -- in a producer's process

PRODUCER = """
import json, sys
import worker
from worker import CancelClient
client = CancelClient()
record_id = client.enqueue("shop-1", "o-1")
found = client.get(record_id)
client.close()
print(json.dumps({"id": record_id, "found": found is not None, "loaded": sorted(sys.modules)}))
"""


def produce(**env: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-c", PRODUCER]
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env = {**kept, **env}
    done = subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    assert b"" == done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_producer_needs_no_trackstar_setting_and_loads_no_worker(
    redis_url: str, database_url: str, redis: Redis
) -> None:
    answer = produce(REDIS_URL=redis_url, DATABASE_URL=database_url)
    worker_side = {"celery", "kombu", "requests", "tornado", "pydantic", "structlog", "sentry_sdk", "alembic", "typer"}

    assert ["o-1"] == [job["order_id"] for job in jobs(redis)]
    assert set() == worker_side & set(answer["loaded"])
    assert {"worker.settings", "worker.runtime.supervisor", "worker.broker.app", "worker.trackstar.client"}.isdisjoint(
        answer["loaded"]
    )


def test_the_addresses_may_stand_in_files(redis_url: str, database_url: str, redis: Redis, tmp_path: Path) -> None:
    for name, address in (("redis", redis_url), ("database", database_url)):
        (tmp_path / name).write_text(f"{address}\n")
    produce(REDIS_URL_FILE=str(tmp_path / "redis"), DATABASE_URL_FILE=str(tmp_path / "database"))

    assert ["o-1"] == [job["order_id"] for job in jobs(redis)]
