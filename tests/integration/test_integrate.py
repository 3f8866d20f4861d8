"""`worker.testing` and the document that tells of it: each outcome, the same errors as in production, the example."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

import worker
from worker import CancelClient
from worker.cancellation.request import CancelRequest, InvalidRequest
from worker.errors import CancelError
from worker.ledger import transitions
from worker.ledger.database import open_ledger
from worker.testing.sandbox import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import MakeDatabase

    from worker.ledger.record import Cancellation
    from worker.testing.sandbox import TrackstarSandbox

pytest_plugins = ["worker.testing"]

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "integrate.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
SHOP = "shop-1"


# ---- the document


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as on a machine that has no setting of ours."""
    command = [sys.executable, "-W", "error", *arguments]
    bare = {name: os.environ[name] for name in ("PATH", "COVERAGE_PROCESS_CONFIG") if name in os.environ}
    return subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True, timeout=100, check=False)


def test_the_example_of_the_document_runs_without_a_socket(tmp_path: Path) -> None:
    files = {found[1]: block for block in BLOCKS if (found := re.match(r"# (\w+\.py)\n", block))}
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider", "--disable-socket")

    assert {*("conftest.py", "refunds.py", "test_refunds.py", "refund_feed.py", "test_refund_feed.py")} == files.keys()
    assert 0 == done.returncode, done.stdout + done.stderr
    assert f"{sum(text.count('def test_') for text in files.values())} passed" in done.stdout


def test_a_refund_hangs_on_one_event_in_ten_lines() -> None:
    (shown,) = [block for block in BLOCKS if block.startswith("# refund_feed.py")]
    (follow,) = [each for each in ast.parse(shown).body if isinstance(each, ast.FunctionDef)]

    assert 10 >= len(ast.unparse(follow).splitlines())


@pytest.mark.parametrize("block", BLOCKS)
def test_every_piece_of_code_in_the_document_is_python(block: str) -> None:
    ast.parse(block)


def test_the_document_names_every_error() -> None:
    stated = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.partition("| error |")[2].partition("\n\n")[0], re.MULTILINE))
    errors = {name for name in worker.__all__ if name.endswith("Error") or name == InvalidRequest.__name__}

    assert errors - {CancelError.__name__} == stated


def promised() -> dict[str, tuple[str, str]]:
    """Return how each outcome ends, and what is known of it at last, as the document says."""
    table = DOCUMENT.partition("| outcome |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): (row[2], row[3]) for row in rows}


def test_the_document_names_every_outcome() -> None:
    assert list(OUTCOMES) == list(promised())


# ---- outcomes


def shown(found: Cancellation, *, status: bool) -> str:
    words = [found.status if status else None, found.verdict, found.evidence]
    person = [found.needs_person] if found.needs_person and not status else []
    return f"{', '.join(filter(None, words))}: {', '.join([found.safe_to_refund, *person])}"


def record(client: CancelClient, cancellation_id: str) -> Cancellation:
    found = client.get(cancellation_id)
    assert found is not None
    return found


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_ends_and_is_known_as_the_document_says(
    outcome: str, trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.answers("1", outcome)
    cancellation_id = cancel_client.enqueue(SHOP, "1")
    ended = cancel_client.wait(cancellation_id)
    answer = cancel_client.safe_to_refund(cancellation_id)

    trackstar_sandbox.advance_to(answer.known_by or trackstar_sandbox.now)

    known = record(cancel_client, cancellation_id)
    assert promised()[outcome] == (shown(ended, status=True), shown(known, status=False))
    assert "not yet" != cancel_client.safe_to_refund(cancellation_id) or known.needs_person


def test_what_has_not_ended_is_told_by_when_it_is_known(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.answers("1", "unavailable")
    cancellation_id = cancel_client.enqueue(SHOP, "1", send_by=trackstar_sandbox.now + timedelta(minutes=5))
    with pytest.raises(TimeoutError, match="is waiting after 60 s; it goes on"):
        cancel_client.wait(cancellation_id, timeout=60)
    answer = cancel_client.safe_to_refund(cancellation_id)
    assert answer.known_by is not None

    trackstar_sandbox.advance_to(answer.known_by + timedelta(hours=2))

    assert ("expired", "no") == (
        record(cancel_client, cancellation_id).status,
        cancel_client.safe_to_refund(cancellation_id),
    )


def test_steps_are_answered_one_after_another(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.answers("1", "429:2", "503", "reset")
    began = trackstar_sandbox.now
    found = cancel_client.wait(cancel_client.enqueue(SHOP, "1"))

    assert ("succeeded", "cancelled", 3) == (found.status, found.verdict, found.attempts)
    assert 2 <= (trackstar_sandbox.now - began).total_seconds() < 60


def test_a_pause_that_the_server_asks_for_takes_its_time(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.answers("1", "429:120")
    began = trackstar_sandbox.now
    cancel_client.wait(cancel_client.enqueue(SHOP, "1"))

    assert timedelta(seconds=120) == trackstar_sandbox.now - began


def test_an_outcome_that_nobody_knows_is_refused(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    with pytest.raises(ValueError, match=r"one of cancelled, .*, unavailable; or steps .*'shiped'"):
        trackstar_sandbox.answers("1", "shiped")
    cancel_client.wait(cancel_client.enqueue(SHOP, "1"))
    with pytest.raises(ValueError, match="say this before it is sent"):
        trackstar_sandbox.answers("1", "not_found")


# ---- time, and who is away


def test_nothing_is_sent_before_time_passes_and_all_that_is_due_when_it_does(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    ids = cancel_client.enqueue_many({"connection_id": f"shop-{n % 3}", "order_id": str(n)} for n in range(30))
    assert {"pending"} == {record(cancel_client, each).status for each in ids}
    now = trackstar_sandbox.now

    trackstar_sandbox.advance()

    assert {"succeeded"} == {record(cancel_client, each).status for each in ids}
    assert now == trackstar_sandbox.now == record(cancel_client, ids[0]).as_of


def test_a_held_connection_waits_and_a_wait_without_a_limit_still_ends(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.hold(SHOP)
    cancellation_id = cancel_client.enqueue(SHOP, "1")
    with pytest.raises(TimeoutError, match="is pending"):
        cancel_client.wait(cancellation_id)
    assert "connection_held" == cancel_client.safe_to_refund(cancellation_id).needs_person

    trackstar_sandbox.resume(SHOP)

    assert "yes" == cancel_client.wait(cancellation_id, timeout=1).safe_to_refund


def test_while_trackstar_is_away_nothing_was_sent(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.down.add("trackstar")
    found = cancel_client.wait(cancel_client.enqueue(SHOP, "1"))

    assert ("exhausted", "not_cancelled", "never_sent") == (found.status, found.verdict, found.evidence)


def test_a_hint_is_followed_when_time_passes(trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient) -> None:
    trackstar_sandbox.answers("1", "refused")
    cancellation_id = cancel_client.enqueue(SHOP, "1")
    cancel_client.wait(cancellation_id)
    as_of = record(cancel_client, cancellation_id).as_of

    assert cancel_client.look_again(cancellation_id)
    trackstar_sandbox.advance(30)

    again = record(cancel_client, cancellation_id).as_of
    assert as_of is not None
    assert again is not None
    assert timedelta(seconds=10) <= again - as_of <= timedelta(seconds=30)


def test_a_job_of_the_callers_own_transaction_is_sent_once_that_has_committed(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    with Session(trackstar_sandbox.engine) as session:
        cancellation_id = cancel_client.enqueue("a shop that nobody knew", "1", session=session)
        session.commit()

    assert "yes" == cancel_client.wait(cancellation_id, timeout=1).safe_to_refund


def test_no_thread_is_left_behind(trackstar_sandbox: TrackstarSandbox) -> None:
    before = set(threading.enumerate())
    client = trackstar_sandbox.client()
    client.wait(client.enqueue(SHOP, "1"))

    assert set() == set(threading.enumerate()) - before


# ---- the same errors as in production

Both = tuple[CancelClient, CancelClient]


@pytest.fixture
def both(redis_url: str, make_database: MakeDatabase, trackstar_sandbox: TrackstarSandbox) -> Iterator[Both]:
    """A client of production and one of the sandbox; both ledgers know one order, which is waiting to be sent."""
    url = make_database("sqlite")
    ledger = open_ledger(url)
    known = CancelRequest(connection_id=SHOP, order_id="known", idempotency_key="k")
    transitions.accept_batch(ledger, [known])
    transitions.accept_batch(trackstar_sandbox.engine, [known])
    ledger.dispose()
    client = CancelClient(redis_url, url)
    yield client, trackstar_sandbox.client()
    client.close()


def told(call: Callable[[], Any]) -> tuple[str, str]:
    """Return what a call returns or raises, as words."""
    try:
        return "returned", str(call())
    except CancelError as error:
        return type(error).__name__, str(error)


WITHDRAWN = CancelRequest(connection_id=SHOP, order_id="known", idempotency_key="k").record_id
CALLS: dict[str, Callable[[CancelClient], Any]] = {
    "an order": lambda client: client.enqueue(SHOP, "1"),
    "a key": lambda client: client.enqueue(SHOP, "1", idempotency_key="once"),
    "no order": lambda client: client.enqueue(SHOP, ""),
    "an order with a space": lambda client: client.enqueue(SHOP, " 1"),
    "a time without an offset": lambda client: client.enqueue(SHOP, "1", send_by="2030-01-01T00:00:00"),
    "a priority that there is not": lambda client: client.enqueue(SHOP, "1", priority="high"),  # type: ignore[arg-type]
    "the key of another order": lambda client: client.enqueue(SHOP, "another", idempotency_key="k"),
    "a field that there is not": lambda client: client.enqueue_many(
        [{"connection_id": SHOP, "order_id": "1", "odd": 1}]
    ),
    "a withdrawal": lambda client: client.withdraw(WITHDRAWN),
    "a withdrawal of nothing": lambda client: client.withdraw("nothing"),
    "a second look at nothing": lambda client: client.look_again("nothing"),
    "what has ended": lambda client: (client.withdraw(WITHDRAWN), client.enqueue(SHOP, "known", idempotency_key="k")),
    "a second withdrawal": lambda client: (client.withdraw(WITHDRAWN), client.withdraw(WITHDRAWN)),
    "an unknown id": lambda client: (client.get("nothing"), client.safe_to_refund("nothing")),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_ends_as_with_the_client_of_production(call: str, both: Both) -> None:
    real, sandbox = (told(lambda client=client: CALLS[call](client)) for client in both)  # type: ignore[misc]

    assert real == sandbox


def test_whoever_is_away_raises_what_it_raises_in_production(
    trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    trackstar_sandbox.down |= {"redis", "database"}
    enqueued = told(lambda: cancel_client.enqueue(SHOP, "1"))
    asked = told(lambda: cancel_client.safe_to_refund(WITHDRAWN))
    trackstar_sandbox.down.clear()

    assert ("InboxUnavailableError", "LedgerUnavailableError") == (enqueued[0], asked[0])
    assert "Redis could not be reached (ConnectionError)" in enqueued[1]
    assert "yes" == cancel_client.wait(cancel_client.enqueue(SHOP, "1")).safe_to_refund


# ---- what it costs whoever does not use it


def test_the_plugin_loads_nothing_before_a_fixture_is_used(tmp_path: Path) -> None:
    heavy = {"celery", "kombu", "redis", "requests", "sqlalchemy", "msgspec", "tornado", "alembic"}
    done = python(tmp_path, "-c", f"import sys, worker.testing; print(sorted({heavy} & set(sys.modules)))")

    assert ("[]\n", "") == (done.stdout, done.stderr)
