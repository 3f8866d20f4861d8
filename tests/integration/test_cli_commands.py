"""Each command of an operator as a process of its own, on a ledger that a test has filled; no worker runs."""

from __future__ import annotations

import csv
import json
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from cryptography.fernet import Fernet
from harness.raw_server import RawServer, whole
from harness.shell import PROGRAM, Operator
from sqlalchemy import text, update

from worker.cancellation.request import CancelRequest
from worker.cli import main
from worker.ledger import connections, holds, migrations, queries, transitions
from worker.ledger import dead_letters as letters
from worker.ledger.database import read_only
from worker.ledger.schema import cancellations
from worker.ledger.vault import HOW_TO_MAKE_A_KEY, LACKS_A_KEY, TokenVault, of_connection
from worker.streams import INBOX, JOB_FIELD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import MakeDatabase
    from redis import Redis
    from sqlalchemy import Engine

    from worker.ledger.record import Cancellation

OPERATORS_KEY = Fernet.generate_key().decode()
FIRST_REVISION = "0f5266a5aa61"


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """The address of one kind only: a command has no statement of its own, and each test starts processes."""
    return make_database("sqlite")


@pytest.fixture
def operator(tmp_path: Path, database_url: str) -> Operator:
    """An operator with a ledger, and a Redis that is away."""
    return Operator(tmp_path, DATABASE_URL=database_url)


@pytest.fixture
def alone(tmp_path: Path) -> Operator:
    """An operator with neither: the ledger is a file that nobody has made."""
    return Operator(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/ledger.sqlite3")


def accept(ledger: Engine, order_id: str, connection_id: str = "shop-1", **fields: Any) -> str:
    """Put a cancellation into the ledger as the intake does; return its id."""
    request = CancelRequest(connection_id=connection_id, order_id=order_id, **fields)
    transitions.accept_batch(ledger, [request])
    return request.record_id


def get(ledger: Engine, record_id: str) -> Cancellation | None:
    with read_only(ledger) as db:
        return queries.get(db, record_id)


def succeed(ledger: Engine, record_id: str) -> None:
    """Let a cancellation have ended well."""
    ended = {
        "status": "succeeded",
        "ended_at": datetime(2026, 1, 2, tzinfo=UTC),
        "verdict": "cancelled",
        "evidence": "response",
        "outcome_reason": "accepted",
        "order_snapshot": '{"id": "as it came"}',
    }
    with ledger.begin() as db:
        db.execute(update(cancellations).where(cancellations.c.id == record_id).values(ended))


# ---- list and show


def test_a_list_for_programs_is_one_object_a_line_without_what_is_personal(
    operator: Operator, ledger: Engine, shop: str
) -> None:
    ended, waits = accept(ledger, "o-1", shop), accept(ledger, "o-2", "nobody-added", requested_by="oms")
    succeed(ledger, ended)
    listed = {each["id"]: each for each in operator.lines("list", "--json")}

    assert {ended, waits} == listed.keys()
    assert ("o-1", "succeeded", "yes", None) == tuple(
        listed[ended][name] for name in ("order_id", "status", "safe_to_refund", "hold_reason")
    )
    assert ("oms", "pending", "not yet", "unknown_connection") == tuple(
        listed[waits][name] for name in ("requested_by", "status", "safe_to_refund", "hold_reason")
    )
    assert not {"order_snapshot", "unused_fields"} & (listed[ended].keys() | listed[waits].keys())


def test_a_list_is_narrowed_by_all_that_is_given(operator: Operator, ledger: Engine, shop: str) -> None:
    ended = accept(ledger, "o-1", shop)
    accept(ledger, "o-2", shop)
    accept(ledger, "o-1", "shop-2")
    succeed(ledger, ended)

    assert [ended] == [each["id"] for each in operator.lines("list", "--json", "--status", "succeeded", "-c", shop)]
    assert [] == operator.lines("list", "--json", "--since", "2199-01-01")
    code, said = operator.run("list", "--status", "pending", "-c", "shop-2")
    assert (0, True, False) == (code, "(held: unknown_connection)" in said, "o-2" in said)


def test_a_list_for_a_spreadsheet_has_a_header_and_goes_on_where_it_has_ended(
    operator: Operator, ledger: Engine, shop: str
) -> None:
    ids = [accept(ledger, f"o-{n}", shop, order_number=f"={n}", metadata={"n": n}, batch="b") for n in range(3)]
    read: list[dict[str, str]] = []
    after: list[str] = []
    while len(read) < len(ids):
        words = ("list", "--csv", "--limit", "2", "--batch", "b", *after)
        done = subprocess.run(
            [PROGRAM, *words],
            cwd=operator.folder,
            env=operator.environment,
            text=True,
            capture_output=True,
            check=True,
        )
        read += csv.DictReader(done.stdout.splitlines())
        assert ("There are more" in done.stderr) is (len(read) < len(ids))
        after = ["--after", read[-1]["id"]]
        assert "" == done.stderr or " ".join(after) in done.stderr

    assert ids[::-1] == [each["id"] for each in read]
    assert [("'=2", '{"n": 2}', "not yet"), ("'=1", '{"n": 1}', "not yet"), ("'=0", '{"n": 0}', "not yet")] == [
        (each["order_number"], each["metadata"], each["safe_to_refund"]) for each in read
    ]


FILTERS = {
    "--status pending": 1,
    "--verdict cancelled": 1,
    "--refund yes": 1,
    "--refund not-yet": 1,
    "--evidence response": 1,
    "--outcome-reason accepted": 1,
    "--reason accepted": 1,
    "--order o-1": 1,
    "--reference ref-1": 1,
    "--order-number 1001": 1,
    "--batch monday": 1,
    "--requested-by oms": 1,
    "--metadata team=A": 1,
    "--metadata team=A --metadata n=6": 0,
    "--since 2026-01-01 --newer-than 1h": 2,
    "--until 2026-01-01T09:30+01:00": 0,
    "--older-than 2h": 0,
    "--needs-person": 0,
}


def test_every_option_that_chooses_is_understood(
    operator: Operator, ledger: Engine, shop: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"reference_id": "REF-1", "order_number": "#1001", "batch": "monday"}
    accept(ledger, "o-1", shop, requested_by="oms", metadata={"team": "A", "n": 5}, **fields)
    succeed(ledger, accept(ledger, "o-2", shop))
    for name, value in operator.environment.items():
        monkeypatch.setenv(name, value)

    def listed(words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cancel-worker", "list", "--json", *words.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return len(capsys.readouterr().out.splitlines())

    assert FILTERS == {words: listed(words) for words in FILTERS}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--refund", "maybe"), "not-yet"),
        (("--since", "yesterday"), "write 2026-01-31"),
        (("--older-than", "2 hours"), "write 90s, 15m"),
        (("--metadata", "team"), "write key=value"),
        (("--after", "no-id"), "begin again without it"),
        (("--json", "--csv"), "choose one"),
    ],
    ids=str,
)
def test_what_chooses_nothing_is_said_with_what_to_write(
    operator: Operator, ledger: Engine, words: tuple[str, ...], remedy: str
) -> None:
    assert ledger
    code, said = operator.run("list", *words)

    assert (2, True) == (code, remedy in said), said


def test_a_cancel_is_shown_by_the_numbers_that_people_use(operator: Operator, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop, reference_id="REF-1", order_number="#1001", batch="monday")
    accept(ledger, "o-2", shop, reference_id="1001")

    for typed in ("ref-1", "REF-1"):
        code, said = operator.run("show", typed)
        assert (0, 1) == (code, said.count(" of connection"))
        assert "Order o-1 of connection shop-1 number #1001 reference REF-1 batch monday Safe to refund" in said
    code, said = operator.run("show", "#1001")
    assert (0, True) == (code, said.index("Order o-2") < said.index("Order o-1"))


def test_an_order_of_two_connections_is_shown_twice_and_of_one_where_that_is_said(
    operator: Operator, ledger: Engine, shop: str
) -> None:
    mine, other = accept(ledger, "o-1", shop), accept(ledger, "o-1", "shop-2")

    assert {mine, other} == {each["id"] for each in operator.lines("show", "o-1", "--json")}
    code, said = operator.run("show", "o-1", "-c", shop)
    assert (0, 1) == (code, said.count("Order o-1 of connection"))
    assert f"Order o-1 of connection {shop}" in said
    assert "Expected to be sent at" in said
    assert "It is pending." in said


def test_what_is_shown_to_programs_has_the_order_as_it_came(operator: Operator, ledger: Engine, shop: str) -> None:
    record_id = accept(ledger, "o-1", shop)
    (before,) = operator.lines("show", record_id, "--json", "--reveal")
    succeed(ledger, record_id)
    (shown,) = operator.lines("show", record_id, "--json", "--reveal")

    assert not {"order_snapshot", "unused_fields"} & operator.lines("show", record_id, "--json")[0].keys()

    assert (None, "not yet", True) == (
        before["order_snapshot"],
        before["safe_to_refund"],
        before["expected_at"] is not None,
    )
    assert ({"id": "as it came"}, "yes", None) == (
        shown["order_snapshot"],
        shown["safe_to_refund"],
        shown["expected_at"],
    )
    assert ([], []) == (shown["attempts_made"], shown["events"])


def test_a_cancel_of_a_held_connection_waits_and_says_why(operator: Operator, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop)
    with ledger.begin() as db:
        holds.hold_by_operator(db, shop)
    code, said = operator.run("show", "o-1")

    assert 0 == code
    assert "Safe to refund: not yet: needs a person, for it was never sent, and its connection is held." in said
    assert "It waits: its connection is held (operator)." in said
    assert "Expected to be sent" not in said


def test_a_cancel_that_comes_too_late_for_its_send_by_says_so(operator: Operator, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop, send_by=datetime(2026, 1, 1, tzinfo=UTC))

    assert "which is after its send_by" in operator.run("show", "o-1")[1]


# ---- enqueue


@pytest.fixture
def producer(operator: Operator, redis_url: str) -> Operator:
    """An operator with a ledger and a Redis."""
    operator.environment["REDIS_URL"] = redis_url
    return operator


def test_who_enqueues_is_told_when_it_is_sent_or_what_it_waits_for(
    producer: Operator, redis: Redis, ledger: Engine, shop: str
) -> None:
    open_said = producer.run("enqueue", "o-1", "-c", shop)
    with ledger.begin() as db:
        holds.hold_by_operator(db, shop)
    held_said = producer.run("enqueue", "o-2", "-c", shop)
    unknown_said = producer.run("enqueue", "o-3", "-c", "nobody-added")

    ids = {name: CancelRequest(connection_id=shop, order_id=name).record_id for name in ("o-1", "o-2")}
    assert open_said[1].startswith(f"{ids['o-1']} o-1 Expected to be sent from ")
    assert (0, f"{ids['o-2']} o-2 It waits: the connection is held (operator).") == held_said
    unknown = CancelRequest(connection_id="nobody-added", order_id="o-3").record_id
    assert (0, f"{unknown} o-3") == unknown_said
    assert 3 == redis.xlen(INBOX)


def test_what_is_on_the_inbox_is_safe_though_the_ledger_is_away(producer: Operator, redis: Redis) -> None:
    producer.environment["DATABASE_URL"] = "sqlite:////nowhere/x"

    assert (0, f"{CancelRequest(connection_id='default', order_id='o-1').record_id} o-1") == producer.run(
        "enqueue", "o-1"
    )
    assert 1 == redis.xlen(INBOX)


def test_who_waits_learns_by_the_exit_code_whether_all_have_succeeded(
    producer: Operator, ledger: Engine, shop: str
) -> None:
    ids = [accept(ledger, name, shop) for name in ("o-1", "o-2", "o-3")]
    succeed(ledger, ids[0])
    assert (0, f"{ids[1]} withdrawn") == producer.run("withdraw", ids[1])

    code, said = producer.run("enqueue", "o-1", "-c", shop, "--wait")
    assert (0, True) == (code, "succeeded" in said)
    code, said = producer.run("enqueue", "o-1", "o-2", "-c", shop, "--wait")
    assert (1, True) == (code, "withdrawn" in said)
    code, said = producer.run("enqueue", "o-3", "-c", shop, "--wait", "--timeout", "0.1")
    assert (1, True) == (code, ids[2] in said)


# ---- repair


def test_what_is_not_known_is_not_replayed(operator: Operator, ledger: Engine, shop: str) -> None:
    known = accept(ledger, "o-1", shop)
    unknown = CancelRequest(connection_id=shop, order_id="o-2").record_id
    before = get(ledger, known)

    for name in (unknown, "no-id"):
        sentence = f"Nothing in the ledger has the id {name}: see `cancel-worker list`."
        assert (2, sentence) == operator.run("replay", known, name, "--reason", "asked again")
    assert before == get(ledger, known)


def in_doubt(ledger: Engine, record_id: str) -> None:
    doubt = {"status": "waiting", "run_at": datetime(2026, 1, 2, tzinfo=UTC), "verdict": "unknown"}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(cancellations.c.id == record_id).values(doubt))


def statuses(ledger: Engine, *ids: str) -> list[str]:
    return [found.status for each in ids if (found := get(ledger, each))]


def test_of_several_that_are_to_be_withdrawn_each_is_tried(producer: Operator, ledger: Engine, shop: str) -> None:
    first, doubtful, last = (accept(ledger, name, shop) for name in ("o-1", "o-2", "o-3"))
    in_doubt(ledger, doubtful)
    code, said = producer.run("withdraw", first, doubtful, last)

    assert (1, True) == (code, doubtful in said)
    assert ["withdrawn", "waiting", "withdrawn"] == statuses(ledger, first, doubtful, last)


@pytest.mark.parametrize("command", [["withdraw"], ["replay", "--reason", "r"], ["change", "--now"]])
def test_ids_and_options_that_choose_are_not_taken_together(
    operator: Operator, ledger: Engine, shop: str, command: list[str]
) -> None:
    mine = accept(ledger, "o-1", shop)

    assert 2 == operator.run(*command, mine, "-c", "another")[0]
    assert ["pending"] == statuses(ledger, mine)


def test_who_chooses_more_than_the_limit_is_told(operator: Operator, ledger: Engine, shop: str) -> None:
    mine = [accept(ledger, f"o-{number}", shop) for number in range(3)]
    doubtful = accept(ledger, "doubtful", shop)
    in_doubt(ledger, doubtful)
    code, said = operator.run("withdraw", "-c", shop, "--limit", "2")

    assert (0, True, True) == (code, "There are more than 2: run it again" in said, "2 are withdrawn" in said)
    assert ["pending", "withdrawn", "withdrawn"] == sorted(statuses(ledger, *mine))


def test_a_check_of_health_asks_no_proxy(operator: Operator) -> None:
    with RawServer(whole(b'{"problems": []}')) as worker:
        operator.environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}

        assert (0, "") == operator.run("health", "--port", worker.url.rpartition(":")[2])


@pytest.mark.parametrize("name", ["", " shop", "a\u200bb", "s" * 300])
def test_a_connection_that_no_job_could_name_is_not_added(operator: Operator, ledger: Engine, name: str) -> None:
    operator.environment["CREDENTIAL_KEYS"] = OPERATORS_KEY
    code, _ = operator.run("connections", "add", name, typed="token\n")

    assert 2 == code
    with read_only(ledger) as db:
        assert [] == connections.list_all(db)


@pytest.mark.parametrize("rate", ["inf", "1e9", "0.01", "nan"])
def test_a_pace_that_cannot_be_kept_is_refused(operator: Operator, shop: str, rate: str) -> None:
    assert 2 == operator.run("connections", "set", shop, "--writes-per-second", rate)[0]


def test_what_was_not_sent_is_withdrawn_by_a_filter_and_only_that(
    operator: Operator, ledger: Engine, shop: str
) -> None:
    mine = [accept(ledger, f"o-{n}", shop, batch="monday") for n in range(3)]
    other, ended, doubtful = accept(ledger, "x", shop), *(accept(ledger, n, shop, batch="monday") for n in ("e", "d"))
    succeed(ledger, ended)
    with ledger.begin() as db:
        doubt = {"status": "waiting", "run_at": datetime(2026, 1, 2, tzinfo=UTC), "verdict": "unknown"}
        db.execute(update(cancellations).where(cancellations.c.id == doubtful).values(doubt))

    code, said = operator.run("withdraw", "--batch", "monday", "--dry-run")
    assert (0, True) == (code, said.endswith("3 would be withdrawn."))
    assert f"{doubtful} not withdrawn: it is waiting, so a request may have reached the warehouse" in said
    assert "pending" == get(ledger, mine[0]).status  # type: ignore[union-attr]
    code, said = operator.run("withdraw", "--batch", "monday")
    assert (0, True) == (code, said.endswith("3 are withdrawn; 0 were sent meanwhile."))
    assert [*["withdrawn"] * 3, "pending", "succeeded", "waiting"] == [
        found.status for each in (*mine, other, ended, doubtful) if (found := get(ledger, each))
    ]
    assert 2 == operator.run("withdraw")[0]


def test_what_ended_otherwise_than_hoped_is_replayed_by_a_filter(
    operator: Operator, ledger: Engine, shop: str
) -> None:
    done, failed, other = (accept(ledger, n, shop, batch=n) for n in ("done", "failed", "other"))
    succeed(ledger, done)
    end = {"status": "exhausted", "ended_at": datetime(2026, 1, 2, tzinfo=UTC), "verdict": "unknown"}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(cancellations.c.id.in_([failed, other])).values(end))

    assert "1 would be replayed, 0 would not." in operator.run("replay", "--batch", "failed", "--dry-run")[1]
    assert "0 are pending again" in operator.run("replay", "--batch", "done", "--reason", "asked")[1]
    assert "1 are pending again" in operator.run("replay", "--batch", "failed", "--reason", "asked")[1]
    assert ["succeeded", "pending", "exhausted"] == [
        found.status for each in (done, failed, other) if (found := get(ledger, each))
    ]


def test_a_replay_of_everything_must_be_meant(operator: Operator) -> None:
    code, said = operator.run("replay", "--reason", "asked")

    assert (2, True) == (code, "say which: give ids" in said)


# ---- dead letters


def dead_letter(ledger: Engine, raw: bytes, source: str = INBOX) -> str:
    """Keep a message as a dead letter; return its number."""
    with ledger.begin() as db:
        kept = letters.DeadLetter(source=source, entry_id="1-1", raw=raw, reason="invalid_job", error="bad")
        letters.insert_dead_letters(db, [kept])
        return str(letters.find(db)[0].id)


def test_a_dead_letter_is_requeued_from_a_file_and_remembers_it(
    producer: Operator, redis: Redis, ledger: Engine, shop: str
) -> None:
    number = dead_letter(ledger, b"{")
    (producer.folder / "job.json").write_text(json.dumps({"connection_id": shop, "order_id": "o-1"}))
    record_id = CancelRequest(connection_id=shop, order_id="o-1").record_id

    assert "requeued" not in producer.run("dead-letters", "show", number)[1]
    assert (0, f"{record_id} o-1") == producer.run("dead-letters", "requeue", number, "--job", "job.json")
    ((_, fields),) = redis.xrange(INBOX)  # type: ignore[misc]
    assert (shop, "o-1") == tuple(json.loads(fields[JOB_FIELD])[name] for name in ("connection_id", "order_id"))
    assert "requeued 20" in producer.run("dead-letters", "show", number)[1]


def test_what_cannot_be_requeued_stays_as_it_was(producer: Operator, redis: Redis, ledger: Engine) -> None:
    number = dead_letter(ledger, b"{}", source="cancellations")
    refused = {
        producer.run("dead-letters", "requeue", number),
        producer.run("dead-letters", "requeue", number, "--job", "no-file"),
        producer.run("dead-letters", "requeue", "4711"),
    }

    assert {2} == {code for code, _ in refused}
    said = " ".join(sentence for _, sentence in refused)
    assert "came from cancellations and is no job" in said
    assert "no-file cannot be read: No such file or directory." in said
    assert "4711" in said
    assert 0 == redis.xlen(INBOX)
    assert "requeued 20" not in producer.run("dead-letters", "show", number)[1]


# ---- connections


def kept_token(ledger: Engine, connection_id: str, key: str) -> str:
    with read_only(ledger) as db:
        return TokenVault([key]).decrypt(connections.encrypted_tokens(db)[connection_id], of_connection(connection_id))


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        pytest.param("", "no access token came", id="nothing"),
        pytest.param(" \n", "no access token came", id="blanks"),
        pytest.param("tök-secret\n", "characters that no HTTP header can carry", id="not ASCII"),
        pytest.param("tok\x00-secret\n", "characters that no HTTP header can carry", id="not printable"),
    ],
)
def test_what_can_be_no_token_is_not_kept_and_not_repeated(
    operator: Operator, ledger: Engine, typed: str, sentence: str
) -> None:
    operator.environment["CREDENTIAL_KEYS"] = OPERATORS_KEY
    code, said = operator.run("connections", "add", "shop-1", typed=typed)

    assert (2, True, False) == (code, sentence in said, "secret" in said)
    with read_only(ledger) as db:
        assert connections.find(db, "shop-1") is None


def test_keys_are_rotated_by_a_new_one_in_front_and_a_rekey(
    operator: Operator, ledger: Engine, shop: str, credential_key: str, redis_url: str
) -> None:
    new = OPERATORS_KEY

    assert (2, HOW_TO_MAKE_A_KEY) == operator.run("connections", "rekey")
    operator.environment["CREDENTIAL_KEYS"] = new
    code, said = operator.run("connections", "rekey")
    assert (2, True) == (code, "nobody knows whether each running worker has the first" in said)
    operator.environment["REDIS_URL"] = redis_url
    sentence = f"Nothing is changed, because of connection {shop}: {LACKS_A_KEY}"
    assert (2, sentence) == operator.run("connections", "rekey")
    assert "token-of-shop-1" == kept_token(ledger, shop, credential_key)

    operator.environment["CREDENTIAL_KEYS"] = f"{new},{credential_key}"
    assert (0, "1 token is encrypted with the first key.") == operator.run("connections", "rekey")
    assert "token-of-shop-1" == kept_token(ledger, shop, new)


@pytest.mark.parametrize("deed", ["hold", "resume", "rotate", "remove"])
def test_nothing_is_done_to_a_connection_that_nobody_knows(operator: Operator, deed: str) -> None:
    operator.environment["CREDENTIAL_KEYS"] = OPERATORS_KEY
    sentence = "There is no connection shop-9: see `cancel-worker connections list`."

    assert (2, sentence) == operator.run("connections", deed, "shop-9", "--reason", "asked", typed="token\n")


# ---- the worker, its health, the doctor


def test_a_worker_does_not_run_on_an_older_schema(operator: Operator, ledger: Engine) -> None:
    operator.environment |= {"TRACKSTAR_API_KEY": "k", "CREDENTIAL_KEYS": OPERATORS_KEY}
    with ledger.begin() as db:
        db.execute(text("UPDATE alembic_version SET version_num = :first"), {"first": FIRST_REVISION})
    wanted = f"this worker needs {migrations.head()}: run `cancel-worker migrate`."

    assert (2, f"The ledger's schema is {FIRST_REVISION}, {wanted}") == operator.run("run", "--concurrency", "3")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_worker_runs_until_it_is_told_to_stop_and_is_healthy_meanwhile(producer: Operator) -> None:
    port = str(free_port())
    producer.environment |= {
        "TRACKSTAR_API_KEY": "k",
        "TRACKSTAR_BASE_URL": "http://127.0.0.1:1",
        "CREDENTIAL_KEYS": OPERATORS_KEY,
        "HEALTH_PORT": port,
    }
    nobody = (1, f"No worker answers on port {port}: start it with HEALTH_PORT={port}.")
    assert nobody == producer.run("health")

    with producer.start("run", "--concurrency", "3", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        started = next(line for line in process.stdout if "worker.started" in line)
        alive = producer.run("health")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)

    assert 3 == json.loads(started)["concurrency"]
    assert (0, "") == alive
    assert (0, True) == (process.returncode, "worker.stopped" in rest)
    assert nobody == producer.run("health", "--ready")


def test_the_doctor_says_of_each_part_that_is_away_what_to_do(alone: Operator) -> None:
    alone.environment["DATABASE_URL"] = "sqlite:////nowhere/x"
    code, said = alone.run("doctor")

    assert 1 == code
    for remedy in ("Start it, or correct REDIS_URL.", "Check DATABASE_URL", "Set TRACKSTAR_API_KEY."):
        assert remedy in said

    alone.environment["TRACKSTAR_API_KEY"] = "k"
    code, said = alone.run("doctor")
    assert (1, False, 1) == (code, "Set TRACKSTAR_API_KEY" in said, said.count("OperationalError"))


def test_the_doctor_says_of_a_connection_what_keeps_it_from_sending(
    producer: Operator, ledger: Engine, shop: str
) -> None:
    with ledger.begin() as db:
        holds.hold_by_operator(db, shop)
    producer.environment |= {
        "TRACKSTAR_API_KEY": "k",
        "TRACKSTAR_BASE_URL": "http://127.0.0.1:1",
        "CREDENTIAL_KEYS": OPERATORS_KEY,
    }
    code, said = producer.run("doctor")

    assert 1 == code
    assert "held (operator), 0 wait" in said
    assert "its token cannot be read" in said
    assert "Trackstar does not answer" in said


# ---- the sandbox


@pytest.fixture
def sandbox(alone: Operator) -> Iterator[dict[str, str]]:
    """What a sandbox says is to be exported; it ends with exit code 0."""
    words = ("--port", "0", "--script", "o-1=503, 422", "--api-key", "k", "--token", "t")
    with alone.start("sandbox", *words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        exports = [next(process.stdout).removeprefix("export ").strip().partition("=")[::2] for _ in range(3)]
        yield dict(exports)
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(30)


def test_a_sandbox_answers_by_its_script_to_whom_it_has_told_the_keys(sandbox: dict[str, str]) -> None:
    base = sandbox["TRACKSTAR_BASE_URL"]
    keys = {"x-trackstar-api-key": "k", "x-trackstar-access-token": "t"}

    def cancel(order_id: str, **other: str) -> int:
        path = f"{base}/wms/orders/{order_id}/cancel"
        return requests.put(path, headers={**keys, **other}, timeout=10).status_code

    assert ("k", "t") == (sandbox["TRACKSTAR_API_KEY"], sandbox["TRACKSTAR_ACCESS_TOKEN"])
    assert [503, 422, 200] == [cancel("o-1") for _ in range(3)]
    assert 200 == cancel("nobody-made-it")


def test_a_sandbox_says_where_another_listens(alone: Operator) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = alone.run("sandbox", "--port", str(port))

    assert 2 == code
    assert f"The sandbox cannot listen on 127.0.0.1:{port}" in said
    assert "choose another --port" in said


# ---- what nothing else catches


def test_a_demo_without_a_redis_server_says_what_to_set(alone: Operator) -> None:
    alone.environment["REDIS_SERVER"] = "no-such-server"

    code, said = alone.run("demo")

    assert 3 == code
    assert said.endswith("REDIS_SERVER names no-such-server, which is no executable file: correct it, or unset it.")
