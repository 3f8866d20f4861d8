"""What a person does about proof, command by command, on both ledgers."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, update

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.request import CancelRequest
from worker.cli import main, parts
from worker.ledger import freshness, queries, transitions
from worker.ledger.database import read_only
from worker.ledger.schema import cancellations, events
from worker.ledger.schema import freshness as freshness_table
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

c = cancellations.c
HOUR = timedelta(hours=1)
NOBODY = "00000000-0000-5000-8000-000000000000"
Run = tuple[int, str]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, redis_url: str
) -> Iterator[Callable[..., Run]]:
    """Run a command in this process; return its exit code and what it said, in one line."""
    monkeypatch.setattr(parts.console, "_width", 500)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CREDENTIAL_KEYS", Fernet.generate_key().decode())
    for name in ("TRACKSTAR_API_KEY", "CANCEL_ACTOR"):
        monkeypatch.delenv(name, raising=False)
    load_settings.cache_clear()

    def run(*words: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["cancel-worker", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return int(str(ended.value.code or 0)), " ".join((written.out + written.err).replace("│", " ").split())

    yield run
    load_settings.cache_clear()


@pytest.fixture
def waits(ledger: Engine, shop: str) -> str:
    """A cancellation that has ended without proof, and that no crawl settles."""
    return unproven(ledger, "o-1", shop)


def unproven(ledger: Engine, order_id: str, shop: str, verdict: str = "accepted", **known: Any) -> str:
    request = CancelRequest(connection_id=shop, order_id=order_id)
    transitions.accept_batch(ledger, [request])
    ended = {"status": "succeeded", "verdict": verdict, "evidence": "response", "outcome_reason": "accepted"}
    known = known or {"needs_person": "crawls_disabled"}
    with ledger.begin() as db:
        which = c.id == request.record_id
        db.execute(update(cancellations).where(which).values(**ended, ended_at=datetime.now(UTC), **known))
    return request.record_id


def told(ledger: Engine) -> list[dict[str, Any]]:
    with read_only(ledger) as db:
        its_own = events.c.type.startswith("cancellation.")
        rows = db.execute(select(events.c.type, events.c.payload).where(its_own).order_by(events.c.id))
        return [{"type": row.type, **json.loads(row.payload)} for row in rows]


@pytest.mark.parametrize(("seen", "answer"), [("cancelled", "yes"), ("not_cancelled", "no")])
def test_what_a_person_saw_is_proof_and_the_timeline_names_who_and_why(
    run: Callable[..., Run], ledger: Engine, waits: str, seen: str, answer: str
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    code, said = run("resolve", waits, seen, "--reason", "seen in the warehouse's portal", "--as", "Ann")

    assert (0, f"{waits} {seen}, says Ann. Safe to refund: {answer}.") == (code, said)
    with read_only(ledger) as db:
        found = queries.get(db, waits)
    assert found is not None
    assert (seen, "person", None, None, None, answer) == (
        found.verdict,
        found.evidence,
        found.known_by,
        found.needs_person,
        found.confirm_at,
        found.safe_to_refund,
    )
    assert found.as_of is not None
    assert before < found.as_of < before + HOUR
    (event,) = told(ledger)
    assert ("cancellation.verdict_raised", seen, "person", answer, "Ann", "seen in the warehouse's portal") == tuple(
        event[name] for name in ("type", "verdict", "evidence", "safe_to_refund", "by", "note")
    )
    code, shown = run("show", waits)
    assert f"cancellation verdict raised: {seen}, says Ann: seen in the warehouse's portal" in shown
    assert f"Safe to refund: {answer}, as of 20" in shown


@pytest.mark.parametrize("known", [{"known_by": datetime(2030, 1, 1, tzinfo=UTC)}, {"verdict": "unknown"}])
def test_a_person_may_also_settle_what_a_crawl_would(
    run: Callable[..., Run], ledger: Engine, shop: str, known: dict[str, Any]
) -> None:
    record_id = unproven(ledger, "o-2", shop, **{"confirm_at": datetime.now(UTC), **known})

    assert 0 == run("resolve", record_id, "cancelled", "--reason", "seen")[0]


def test_the_name_comes_from_the_environment_or_from_who_is_logged_in(
    run: Callable[..., Run], ledger: Engine, shop: str, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "bea")
    run("resolve", waits, "cancelled", "--reason", "seen")
    monkeypatch.setenv("CANCEL_ACTOR", "night shift")
    run("resolve", unproven(ledger, "o-2", shop), "cancelled", "--reason", "seen")
    first, second = (event["by"] for event in told(ledger))

    assert first.startswith("bea@")
    assert "night shift" == second


def test_what_is_proven_or_has_not_ended_or_is_unknown_is_not_settled(
    run: Callable[..., Run], ledger: Engine, shop: str, waits: str
) -> None:
    proven = unproven(ledger, "o-2", shop, "not_cancelled", as_of=datetime.now(UTC))
    request = CancelRequest(connection_id=shop, order_id="o-3")
    transitions.accept_batch(ledger, [request])
    words = ("cancelled", "--reason", "seen", "--as", "Ann")

    assert (1, True) == _said(run("resolve", proven, *words), "is proven: not_cancelled, by response")
    assert (1, True) == _said(run("resolve", request.record_id, *words), "has not ended: it is pending")
    assert (2, True) == _said(run("resolve", NOBODY, *words), f"Nothing in the ledger has the id {NOBODY}")
    assert (2, True) == _said(run("resolve", "no id", *words), "Nothing in the ledger has the id no id")
    assert (2, True) == _said(run("resolve", waits, "maybe", "--reason", "seen"), "maybe")
    assert (2, True) == _said(run("resolve", waits, "cancelled", "--reason", " "), "say what you saw")
    assert 2 == run("resolve", waits, "cancelled")[0]
    assert [] == told(ledger)
    assert 0 == run("resolve", waits, *words)[0]
    assert (1, True) == _said(run("resolve", waits, *words), "is proven: cancelled, by person")


def _said(done: Run, sentence: str) -> tuple[int, bool]:
    return done[0], sentence in done[1]


def test_a_long_note_is_cut_and_holds_nothing_that_a_terminal_obeys(
    run: Callable[..., Run], ledger: Engine, waits: str
) -> None:
    assert 0 == run("resolve", waits, "cancelled", "--reason", "\x1b[2J" + "x" * 5_000, "--as", "A\nB")[0]
    (event,) = told(ledger)

    assert ("A B", 500, " [2Jx") == (event["by"], len(event["note"]), event["note"][:5])


# -- list and show


def test_a_list_shows_what_needs_a_person_and_programs_are_told_the_same(
    run: Callable[..., Run], ledger: Engine, shop: str, waits: str
) -> None:
    later = unproven(ledger, "o-2", shop, known_by=datetime(2030, 1, 2, 14, 5, tzinfo=UTC))
    code, said = run("list")
    assert (0, True, True) == (
        code,
        "not yet: needs a person (crawls_disabled)" in said,
        "not yet, known by 2030-01-02 14:05 UTC" in said,
    )
    code, said = run("list", "--needs-person")
    assert (0, True, False) == (code, waits in said, later in said)
    person = json.loads(run("list", "--needs-person", "--json")[1])
    assert (waits, "crawls_disabled", None) == tuple(person[name] for name in ("id", "needs_person", "known_by"))
    shown = json.loads(run("show", later, "--json")[1])
    assert ("2030-01-02T14:05:00Z", None, True) == (
        shown["known_by"],
        shown["needs_person"],
        shown["as_of"] is not None,
    )


def test_show_says_by_when_or_which_person_and_what_to_do(
    run: Callable[..., Run], ledger: Engine, shop: str, waits: str
) -> None:
    later = unproven(ledger, "o-2", shop, known_by=datetime(2030, 1, 2, 14, 5, tzinfo=UTC))
    passed = unproven(ledger, "o-3", shop, known_by=datetime(2026, 1, 2, 14, 5, tzinfo=UTC))
    no = unproven(ledger, "o-4", shop, "not_cancelled", as_of=datetime(2026, 1, 2, 14, 5, tzinfo=UTC))
    person = run("show", waits)[1]

    assert "not yet: needs a person, for Trackstar's crawls of this connection are disabled." in person
    assert f"`cancel-worker resolve {waits} cancelled`" in person
    assert "not yet, known by 2030-01-02 14:05:00 UTC." in run("show", later)[1]
    assert "known by 2026-01-02 14:05:00 UTC. That time has passed" in run("show", passed)[1]
    assert "no, as of 2026-01-02 14:05:00 UTC. The order was not cancelled" in run("show", no)[1]


def test_show_says_that_an_order_is_not_known_yet(run: Callable[..., Run], ledger: Engine, shop: str) -> None:
    request = CancelRequest(connection_id=shop, order_id="o-9")
    transitions.accept_batch(ledger, [request])
    now = datetime.now(UTC)
    with ledger.begin() as db:
        waits = {"status": "waiting", "run_at": now, "known_by": now + HOUR, "outcome_reason": "order_not_found_yet"}
        db.execute(update(cancellations).where(c.id == request.record_id).values(**waits))
    said = run("show", request.record_id)[1]

    assert "Trackstar does not know the order yet" in said
    assert "Safe to refund: not yet, known by 20" in said


# -- connections, doctor


def crawls(status: CrawlStatus, ago: timedelta = HOUR / 2) -> Crawls:
    at = datetime.now(UTC) - ago
    return Crawls(began_at=at, ended_at=at, frequency=3600.0, length=60.0, status=status, seen_at=datetime.now(UTC))


def test_a_connection_is_changed_and_shows_how_fresh_its_copy_is(
    run: Callable[..., Run], ledger: Engine, shop: str
) -> None:
    words = ("--trackstar-id", "ts-1", "--name", "New name", "--writes-per-second", "5")
    assert (0, f"Connection {shop} is changed.") == run("connections", "set", shop, *words)
    with read_only(ledger) as db:
        row = db.execute(select(freshness_table.c.trackstar_id)).scalar_one()
    assert "ts-1" == row
    assert "unknown" in run("connections", "list")[1]
    with ledger.begin() as db:
        freshness.keep(db, {shop: crawls(CrawlStatus.ENABLED)})
    said = run("connections", "list")[1]

    for words in ("New name", "copy of ", "next crawl by "):
        assert words in said


def test_a_connection_is_added_with_its_id_at_trackstar(
    run: Callable[..., Run], ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.connections._read_token", lambda _: "token")
    assert 0 == run("connections", "add", "shop-2", "--trackstar-id", "ts-2")[0]
    with read_only(ledger) as db:
        rows = db.execute(select(freshness_table.c.connection_id, freshness_table.c.trackstar_id)).all()

    assert [("shop-2", "ts-2")] == [tuple(row) for row in rows]


def test_nothing_is_changed_that_is_unknown_or_not_stated(run: Callable[..., Run], shop: str) -> None:
    assert (2, True) == _said(run("connections", "set", "nobody", "--name", "x"), "There is no connection nobody")
    assert (2, True) == _said(run("connections", "set", shop), "say what")
    for wrong in ("", " ", "x" * 256):
        assert (2, True) == _said(run("connections", "set", shop, "--trackstar-id", wrong), "has 1 to 255 characters")


@pytest.mark.parametrize(
    ("status", "ago", "said"),
    [
        (CrawlStatus.DISABLED, HOUR / 2, "crawls disabled"),
        (CrawlStatus.ERROR, HOUR / 2, "crawls failing"),
        (CrawlStatus.ENABLED, 3 * HOUR, "crawls overdue"),
    ],
)
def test_the_doctor_says_whose_crawls_do_not_come(
    run: Callable[..., Run], ledger: Engine, shop: str, status: CrawlStatus, ago: timedelta, said: str
) -> None:
    with ledger.begin() as db:
        freshness.keep(db, {shop: crawls(status, ago)})
    code, shown = run("doctor")

    assert (1, True) == (code, f"! Connection {shop} {said}" in shown)
    assert re.search(rf"{said}, copy of [\d :-]+ UTC (Ask Trackstar|See what Trackstar reports)", shown)


def test_the_doctor_tells_the_rate_of_false_verdicts_and_what_needs_a_person(
    run: Callable[..., Run], ledger: Engine, shop: str, waits: str
) -> None:
    unproven(ledger, "o-2", shop, "cancelled", as_of=datetime.now(UTC))
    with ledger.begin() as db:
        freshness.keep(db, {shop: crawls(CrawlStatus.UNKNOWN)})
    said = run("doctor")[1]

    assert "0 verdicts contradicted of 1 cancelled (0.0000%) in 14 days" in said
    assert "1 need a person" in said
    assert "of 1 Trackstar does not tell its crawls" in said
    run("resolve", waits, "cancelled", "--reason", "seen")
    assert "need a person" not in run("doctor")[1]
