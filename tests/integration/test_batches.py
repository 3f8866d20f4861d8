"""A file of jobs as one batch, as an operator enqueues, follows and stops it; no worker runs."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.shell import Operator
from sqlalchemy import select, update

from worker.cancellation.request import parse_request
from worker.ledger import transitions
from worker.ledger.schema import audit, cancellations
from worker.streams import INBOX, JOB_FIELD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import MakeDatabase
    from redis import Redis
    from sqlalchemy import Engine

c = cancellations.c
CSV = "order_id,priority\n" + "".join(f"o-{number},bulk\n" for number in range(5))


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """The address of one kind only: a command has no statement of its own, and each test starts processes."""
    return make_database("sqlite")


@pytest.fixture
def operator(tmp_path: Path, database_url: str, redis_url: str) -> Operator:
    (tmp_path / "monday.csv").write_text(CSV)
    return Operator(tmp_path, DATABASE_URL=database_url, REDIS_URL=redis_url)


def jobs(redis: Redis) -> list[dict[str, Any]]:
    return [json.loads(entry[JOB_FIELD]) for _, entry in redis.xrange(INBOX)]


def take_in(redis: Redis, ledger: Engine) -> None:
    """Take the inbox into the ledger as a worker does."""
    requests = [parse_request(entry[JOB_FIELD]) for _, entry in redis.xrange(INBOX)]
    redis.delete(INBOX)
    transitions.accept_batch(ledger, requests)


def succeed(ledger: Engine, *order_ids: str, **changes: Any) -> None:
    ended = {"status": "succeeded", "verdict": "cancelled", "evidence": "response", "ended_at": c.received_at}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(c.order_id.in_(order_ids)).values(ended | changes))


pytestmark = pytest.mark.usefixtures("shop")


def test_a_file_is_enqueued_as_one_batch_named_after_it_and_its_content(operator: Operator, redis: Redis) -> None:
    code, said = operator.run("enqueue-file", "monday.csv", "-c", "shop-1")
    found = jobs(redis)
    (batch,) = {job["batch"] for job in found}

    assert (0, True) == (code, f"5 jobs are enqueued as batch {batch}" in said)
    assert "monday.csv-" == batch[:11]
    assert [f"o-{number}" for number in range(5)] == [job["order_id"] for job in found]
    assert {("shop-1", "bulk")} == {(job["connection_id"], job["priority"]) for job in found}


def test_standard_input_is_a_file_too(operator: Operator, redis: Redis) -> None:
    code, _ = operator.run("enqueue-file", "-", "--batch", "b", typed='{"connection_id": "shop-1", "order_id": "o-9"}')

    assert (0, [("o-9", "b")]) == (code, [(job["order_id"], job["batch"]) for job in jobs(redis)])


def test_a_line_has_the_trace_that_it_states_or_that_of_the_command(operator: Operator, redis: Redis) -> None:
    mine, other = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
    (operator.folder / "traced.csv").write_text(f"order_id,traceparent\no-1,{mine}\no-2,\no-3,none\n")
    code, _ = operator.run("enqueue-file", "traced.csv", "-c", "shop-1", "--traceparent", other)

    assert (0, [mine, other, None]) == (code, [job.get("traceparent") for job in jobs(redis)])


def test_one_bad_line_and_nothing_is_sent_and_each_bad_line_is_listed(operator: Operator, redis: Redis) -> None:
    (operator.folder / "bad.csv").write_text("order_id,priority\no-1,bulk\n,bulk\no-3,soon\n")
    code, said = operator.run("enqueue-file", "bad.csv", "-c", "shop-1")

    assert (2, []) == (code, jobs(redis))
    assert all(words in said for words in ("line 3: ", "line 4: ", "2 lines are bad, 1 are good"))


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_told_in_one_sentence(operator: Operator, name: str) -> None:
    code, said = operator.run("enqueue-file", name, "-c", "shop-1")

    assert (2, True) == (code, f"{name} cannot be read" in said)


def test_run_again_it_doubles_nothing_and_says_what_had_ended(
    operator: Operator, redis: Redis, ledger: Engine
) -> None:
    operator.run("enqueue-file", "monday.csv", "-c", "shop-1")
    take_in(redis, ledger)
    succeed(ledger, "o-0", "o-1")
    code, said = operator.run("enqueue-file", "monday.csv", "-c", "shop-1")

    assert (0, True) == (code, "2 of them had ended before" in said)
    assert ["o-2", "o-3", "o-4"] == [job["order_id"] for job in jobs(redis)]
    take_in(redis, ledger)
    with ledger.connect() as db:
        assert 5 == len(db.execute(select(c.id)).all())


def test_it_waits_for_all_and_its_exit_code_says_whether_all_succeeded(
    operator: Operator, redis: Redis, ledger: Engine
) -> None:
    operator.run("enqueue-file", "monday.csv", "-c", "shop-1")
    take_in(redis, ledger)
    succeed(ledger, "o-0", "o-1", "o-2", "o-3")
    succeed(ledger, "o-4", status="rejected", verdict="not_cancelled", evidence="refusal")
    code, said = operator.run("enqueue-file", "monday.csv", "-c", "shop-1", "--wait")

    assert (1, True, True) == (code, "rejected no 1" in said, "succeeded yes 4" in said)


@contextmanager
def start(operator: Operator, *words: str) -> Iterator[subprocess.Popen[str]]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with operator.start(*words, **streams) as running:
        try:
            yield running
        finally:
            running.kill()  # where a test has failed it would go on waiting


@pytest.mark.parametrize(
    ("code", "sent", "ended"),
    [(1, 2, {"status": "rejected", "verdict": "not_cancelled", "evidence": "refusal"}), (0, 5, {})],
    ids=["it is refused", "it succeeds"],
)
def test_a_canary_is_sent_first_and_the_rest_only_when_it_has_succeeded(
    operator: Operator, redis: Redis, ledger: Engine, code: int, sent: int, ended: dict[str, Any]
) -> None:
    with start(operator, "enqueue-file", "monday.csv", "-c", "shop-1", "--canary", "2") as running:
        seen: list[Any] = []
        while len(seen) < 2:  # the canary, while the command waits for it
            for _, entries in redis.xread({INBOX: seen[-1][0] if seen else "0"}, block=1_000) or []:
                seen += entries
        take_in(redis, ledger)
        succeed(ledger, "o-0", "o-1", **ended)
        running.communicate(timeout=60)

    assert (code, sent) == (running.returncode, 2 + len(jobs(redis)))


def test_batches_are_listed_shown_and_stopped_by_name(operator: Operator, redis: Redis, ledger: Engine) -> None:
    operator.run("enqueue-file", "monday.csv", "-c", "shop-1", "--batch", "monday")
    operator.run("enqueue", "o-9", "-c", "shop-1")
    take_in(redis, ledger)
    succeed(ledger, "o-0")

    assert "monday" in operator.run("batches", "list")[1]
    assert "pending not yet 4 succeeded yes 1" in operator.run("batches", "show", "monday")[1]
    assert "4 would be withdrawn" in operator.run("batches", "stop", "monday", "--dry-run")[1]
    assert (0, True) == ((said := operator.run("batches", "stop", "monday"))[0], "4 are withdrawn" in said[1])
    with ledger.connect() as db:
        stands = dict(db.execute(select(c.order_id, c.status)).all())
        acts = [row.action for row in db.execute(select(audit.c.action))]
    assert {"o-0": "succeeded", "o-9": "pending"} | {f"o-{n}": "withdrawn" for n in range(1, 5)} == stands
    assert ["withdraw"] * 4 == acts


@pytest.mark.parametrize("command", ["show", "stop"])
def test_a_batch_that_nobody_knows_is_told(operator: Operator, command: str) -> None:
    code, said = operator.run("batches", command, "monday")

    assert (2, True) == (code, "'monday'" in said)


def test_how_a_batch_is_sent_is_changed_by_its_name(operator: Operator, redis: Redis, ledger: Engine) -> None:
    operator.run("enqueue-file", "monday.csv", "-c", "shop-1", "--batch", "monday")
    take_in(redis, ledger)
    words = ("change", "--batch", "monday", "--priority", "urgent", "--send-by", "2199-01-01T00:00Z")

    assert "5 would be changed" in operator.run(*words, "--dry-run")[1]
    assert (0, True) == ((said := operator.run(*words))[0], "5 are changed" in said[1])
    with ledger.connect() as db:
        assert {("urgent", 2199)} == {(row.priority, row.send_by.year) for row in db.execute(select(cancellations))}
        assert ["change"] * 5 == [row.action for row in db.execute(select(audit.c.action))]


@pytest.mark.parametrize(
    ("says", "words"),
    [("--priority", ()), ("no instant", ("--send-by", "soon")), ("say which", ("--now",))],
)
def test_a_change_without_sense_is_refused(operator: Operator, says: str, words: tuple[str, ...]) -> None:
    code, said = operator.run("change", *words)

    assert (2, True) == (code, says in said)
