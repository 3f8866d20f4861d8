"""A worker that stands still says so: /readyz, one alert, the doctor; and is ready again without a restart."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
import requests
from harness.commands import run
from harness.deployment import through
from sqlalchemy import make_url, update

from worker.cancellation.request import CancelRequest
from worker.ledger import transitions
from worker.ledger.schema import cancellations, connections
from worker.streams import INBOX

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment, Worker

pytestmark = [
    pytest.mark.deployment(ledgers=("sqlite",), settings={"HEALTH_PORT": "0", "COLUMNS": "400"}),
    pytest.mark.timeout(240),
]
SOON = 75.0  # a standstill of 30 s, two polls, and a slow machine


def problems(worker: Worker) -> list[str]:
    worker.wait_for_line("health.listening")
    port = worker.told("health.listening")["port"]
    answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
    found: list[str] = answer.json()["problems"]
    assert (200 if not found else 503) == answer.status_code
    return found


def wait_until_unready(deployment: Deployment, worker: Worker, because: str) -> None:
    """Wait until the worker gives this reason, has raised an alert, and the doctor gives the same reason."""
    said: list[str] = []

    def found(where: list[str]) -> bool:
        said[:] = where
        return any(because in each for each in said)

    try:
        deployment.wait_until(lambda: found(problems(worker)), f"{because!r} in /readyz", SOON)
        deployment.wait_until(lambda: "worker.unready" in worker.output, "the alert", SOON)
        deployment.wait_until(lambda: found([run(deployment, "doctor")[1]]), f"{because!r} from the doctor")
    except AssertionError as error:
        raise AssertionError(said, worker.output[-3000:]) from error


def wait_until_ready_again(deployment: Deployment, worker: Worker) -> None:
    deployment.wait_until(lambda: not problems(worker), "the worker to be ready again", SOON)
    deployment.wait_until(lambda: "worker.ready_again" in worker.output, "the end of the alert", SOON)
    assert (1, 1) == (worker.output.count('"worker.unready"'), worker.output.count('"worker.ready_again"'))


def doctor(deployment: Deployment) -> str:
    code, said = run(deployment, "doctor")
    assert 1 == code, said
    return said


@pytest.mark.parametrize(
    ("part", "because"),
    [
        ("worker.runtime.dispatcher:Dispatcher.tick", "has sent nothing for"),
        ("worker.runtime.intake:Intake._tick", f"of {INBOX} is not taken"),
    ],
    ids=["nothing is handed out", "nothing is taken in"],
)
def test_a_worker_of_which_a_part_does_nothing_is_unready_until_it_does(
    deployment: Deployment, shop: str, tmp_path: Path, part: str, because: str
) -> None:
    idle = tmp_path / "idle"
    idle.touch()
    deployment.trackstar.add_order(shop, "o-1")
    cancelled = deployment.client.enqueue(shop, "o-1")
    worker = deployment.start_worker(command=through("idle.py", part, str(idle)))
    wait_until_unready(deployment, worker, because)
    idle.unlink()
    assert "succeeded" == deployment.client.wait(cancelled, 30).status
    wait_until_ready_again(deployment, worker)


def test_a_redis_user_without_the_right_to_run_scripts_is_named_until_it_has_it(
    deployment: Deployment, shop: str
) -> None:
    user = ("ACL", "SETUSER", "limited")
    deployment.redis.execute_command(*user, "on", ">p", "~*", "&*", "+@all", "-@dangerous", "-@admin", "-@scripting")
    deployment.redis.execute_command(*user, "+info", "+client")
    address = make_url(deployment.redis_url)
    deployment.env["REDIS_URL"] = f"redis://limited:p@{address.host}:{address.port}/0"
    worker = deployment.start_worker()
    deployment.trackstar.add_order(shop, "o-1")
    cancelled = deployment.client.enqueue(shop, "o-1")

    wait_until_unready(deployment, worker, "+evalsha")
    said = doctor(deployment)
    assert "+eval" in said
    assert "+evalsha" in said

    deployment.redis.execute_command(*user, "+@scripting", "+@all")
    assert "succeeded" == deployment.client.wait(cancelled, 30).status
    wait_until_ready_again(deployment, worker)


def test_an_inbox_of_another_type_is_named_until_it_is_put_away(deployment: Deployment, shop: str) -> None:
    deployment.redis.lpush(INBOX, "a job, as somebody thought")
    worker = deployment.start_worker()

    wait_until_unready(deployment, worker, f"The key {INBOX} is a list")

    deployment.redis.rename(INBOX, "put-away")
    wait_until_ready_again(deployment, worker)
    deployment.trackstar.add_order(shop, "o-1")
    assert "succeeded" == deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30).status


def test_a_redis_that_is_full_is_named_until_it_has_room(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    worker.wait_until_consuming()
    deployment.redis.config_set("maxmemory", 1)

    wait_until_unready(deployment, worker, "Redis is full")

    deployment.redis.config_set("maxmemory", 0)
    wait_until_ready_again(deployment, worker)
    deployment.trackstar.add_order(shop, "o-1")
    assert "succeeded" == deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30).status


@pytest.mark.deployment(ledgers=("postgresql",), settings={"HEALTH_PORT": "0", "COLUMNS": "400"})
def test_a_ledger_that_cannot_be_written_is_named_until_it_can(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    worker.wait_until_consuming()
    _set_read_only(deployment, "on")
    deployment.trackstar.add_order(shop, "o-1")
    cancelled = deployment.client.enqueue(shop, "o-1")

    wait_until_unready(deployment, worker, "read-only")

    _set_read_only(deployment, "off")
    deployment.wait_until(lambda: deployment.client.get(cancelled), "its record")
    assert "succeeded" == deployment.client.wait(cancelled, 30).status
    wait_until_ready_again(deployment, worker)


def _set_read_only(deployment: Deployment, word: str) -> None:
    """Let new sessions be read-only or not, and end those that there are."""
    address = make_url(deployment.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address, autocommit=True)) as db:
        name = db.info.dbname
        db.execute("SET default_transaction_read_only = off")
        db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {word}")
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [name],
        )


def test_a_worker_that_is_well_is_ready_and_leaves_word_for_the_doctor(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    owner = _owner(worker)
    deployment.trackstar.add_order(shop, "o-1")
    deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30)

    code, said = run(deployment, "doctor")
    assert (0, True) == (code, f"Worker {owner}" in said), said
    assert [] == problems(worker)
    assert "worker.unready" not in worker.output


def _owner(worker: Worker) -> str:
    worker.wait_until_ready()
    return str(worker.told("worker.started")["owner"])


def test_the_doctor_says_that_jobs_wait_and_nobody_works(deployment: Deployment, shop: str) -> None:
    code, said = run(deployment, "doctor")
    assert (0, True) == (code, "none has said anything" in said), said

    long_ago = datetime.now(UTC) - timedelta(seconds=90)
    with deployment.ledger.begin() as db:
        transitions.accept(db, [CancelRequest(connection_id=shop, order_id="o-1")])
        db.execute(update(cancellations).values(received_at=long_ago))
        db.execute(update(connections).values(updated_at=long_ago))

    assert f"{shop} has waited for" in doctor(deployment)
