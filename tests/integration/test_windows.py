"""What chance a cancel has, counted from our own outcomes on both ledgers; the command; what `enqueue` warns of."""

from __future__ import annotations

import json
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text, update

from worker.cancellation.answer import Order
from worker.cancellation.chances import Tally, by_age, by_hour, by_system, total
from worker.cancellation.lifecycle import Transition
from worker.cancellation.proof import Confirmation
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.cli import main, orders, parts
from worker.ledger import claims, connections, outcomes, results, transitions
from worker.ledger.attempts import AttemptRow
from worker.ledger.schema import cancellations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.client import CancelClient
    from worker.ledger.vault import TokenVault

NOW = datetime.now(UTC).replace(microsecond=0)
TODAY_AT_9 = NOW.replace(hour=9, minute=30, second=0) - timedelta(days=1)
SUCCESS = {"status": "succeeded", "verdict": "cancelled", "evidence": "read_back"}
FAILURE = {"status": "rejected", "verdict": "not_cancelled", "evidence": "read_back"}


@pytest.fixture
def shops(ledger: Engine, vault: TokenVault) -> list[str]:
    """Two connections of one system, one of another, and one whose system nobody has stated."""
    systems = {"hero-1": "shiphero", "hero-2": "shiphero", "lo": "logiwa", "none": None}
    with ledger.begin() as db:
        for name, system in systems.items():
            connections.add(db, name, vault.encrypt("t"), integration_name=system)
    return list(systems)


def end(ledger: Engine, connection_id: str = "hero-1", *, sent: datetime = TODAY_AT_9, **facts: Any) -> None:
    """Put a cancellation into the ledger that was sent then and has ended."""
    age = facts.pop("age", None)
    row = {
        "id": str(uuid.uuid4()),
        "connection_id": connection_id,
        "order_id": "o",
        "idempotency_key": "k",
        "priority": "normal",
        "requested_at": sent,
        "received_at": sent,
        "first_sent_at": sent,
        "ended_at": sent,
        "order_created_at": None if age is None else sent - age,
        **SUCCESS,
        **facts,
    }
    with ledger.begin() as db:
        db.execute(insert(cancellations).values(**row))


def counted(ledger: Engine, **how: Any) -> outcomes.Sample:
    with ledger.connect() as db:
        return outcomes.of_all(db, **how)


# ---- what is counted


def test_outcomes_are_counted_by_system_by_age_and_by_the_hour_in_utc(ledger: Engine, shops: list[str]) -> None:
    del shops
    late = TODAY_AT_9 + timedelta(hours=12)
    end(ledger, "hero-1", age=timedelta(minutes=5))
    end(ledger, "hero-2", age=timedelta(hours=2), sent=late)
    end(ledger, "hero-2", age=timedelta(days=9), sent=late, **FAILURE)
    end(ledger, "lo", **FAILURE)
    end(ledger, "none", status="succeeded", verdict="accepted")
    sample = counted(ledger)
    systems = by_system(sample.cells)

    assert ["logiwa", "shiphero", None] == list(systems)
    assert Tally(succeeded=2, failed=1, last_success=late) == total(systems["shiphero"])
    assert Tally(failed=1) == total(systems["logiwa"])
    assert Tally(undecided=1) == total(systems[None])
    assert {
        0: Tally(succeeded=1, last_success=TODAY_AT_9),
        2: Tally(succeeded=1, last_success=late),
        6: Tally(failed=1),
    } == by_age(systems["shiphero"])
    assert {
        9: Tally(succeeded=1, last_success=TODAY_AT_9),
        21: Tally(succeeded=1, failed=1, last_success=late),
    } == by_hour(systems["shiphero"])
    assert (5, TODAY_AT_9) == (sample.rows, sample.since)
    assert abs(sample.now - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.usefixtures("shops")
def test_the_hour_is_that_of_utc_wherever_the_session_is(ledger: Engine) -> None:
    end(ledger)
    with ledger.connect() as db:
        if ledger.dialect.name == "postgresql":
            db.execute(text("SET TIME ZONE 'Asia/Tokyo'"))
        assert [9] == [cell.hour for cell in outcomes.of_all(db).cells]
        db.rollback()


@pytest.mark.parametrize(
    ("age", "bucket"),
    [
        (timedelta(seconds=899), 0),
        (timedelta(seconds=900), 1),
        (timedelta(seconds=3600), 2),
        (timedelta(days=3), 6),
        (timedelta(seconds=-299), 0),
        (timedelta(hours=-5), None),
        (None, None),
    ],
    ids=str,
)
def test_an_age_belongs_to_the_range_whose_edge_it_has_reached(
    ledger: Engine, shops: list[str], age: timedelta | None, bucket: int | None
) -> None:
    del shops
    end(ledger, age=age)

    assert [bucket] == [cell.age for cell in counted(ledger).cells]


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (Tally(succeeded=1, last_success=TODAY_AT_9), {"evidence": "response"}),
        # given up in doubt, and proven later
        (Tally(succeeded=1, last_success=TODAY_AT_9), {"status": "exhausted"}),
        (Tally(failed=1), {**FAILURE, "evidence": "fresh_read_back"}),
        (Tally(failed=1), {**FAILURE, "status": "succeeded"}),  # contradicted
        (Tally(failed=1), {**FAILURE, "evidence": "person"}),
        (Tally(failed=1), {**FAILURE, "evidence": "refusal", "outcome_reason": "not_supported"}),
        (Tally(undecided=1), {"verdict": "accepted", "evidence": None}),
        (Tally(undecided=1), {"status": "rejected", "verdict": "unknown", "evidence": None}),
        # another has cancelled it
        (Tally(), {"status": "rejected"}),
        # the warehouse was never asked
        (Tally(), {**FAILURE, "evidence": "refusal", "outcome_reason": "order_not_found"}),
        (Tally(), {**FAILURE, "evidence": "never_sent", "status": "withdrawn", "first_sent_at": None}),
        (Tally(), {**FAILURE, "evidence": "never_sent", "status": "expired"}),
        # not ended; what it says is its memory of an earlier try
        (Tally(), {"status": "pending", "verdict": "unknown", "ended_at": None}),
    ],
)
def test_only_what_the_warehouse_has_decided_counts(
    ledger: Engine, shops: list[str], expected: Tally, facts: dict[str, Any]
) -> None:
    del shops
    end(ledger, **facts)

    assert expected == total(counted(ledger).cells)


def test_what_was_received_before_the_days_asked_for_or_beyond_the_limit_is_not_looked_at(
    ledger: Engine, shops: list[str]
) -> None:
    del shops
    for days in (1, 2, 3, 40):
        end(ledger, sent=NOW - timedelta(days=days))

    assert 3 == counted(ledger).rows == total(counted(ledger).cells).succeeded
    assert 4 == counted(ledger, days=50).rows
    assert 2 == counted(ledger, days=2.5).rows
    sample = counted(ledger, most=2)
    assert (2, NOW - timedelta(days=2)) == (sample.rows, sample.since)


def test_an_empty_ledger_has_nothing_to_tell(ledger: Engine) -> None:
    sample = counted(ledger)

    assert ([], 0, None) == (sample.cells, sample.rows, sample.since)


def test_one_connection_one_system_or_the_system_of_a_connection_is_asked_for(
    ledger: Engine, shops: list[str]
) -> None:
    for name in shops:
        end(ledger, name)
    with ledger.connect() as db:
        assert 1 == total(outcomes.of_connection(db, "hero-2").cells).succeeded
        assert 2 == total(outcomes.of_integration(db, "ShipHero").cells).succeeded
        assert 2 == total(outcomes.of_same_system(db, "hero-2").cells).succeeded
        assert 1 == total(outcomes.of_same_system(db, "none").cells).succeeded
        assert 4 == outcomes.of_connection(db, "nobody").rows  # looked at
        assert [] == outcomes.of_connection(db, "nobody").cells


# ---- when an order was created


CREATED = datetime(2026, 1, 1, 8, tzinfo=UTC)


def created_at(ledger: Engine) -> datetime | None:
    with ledger.connect() as db:
        return db.execute(select(cancellations.c.order_created_at)).scalar_one()


def claim(ledger: Engine) -> claims.AttemptClaim:
    with ledger.begin() as db:
        transitions.accept(db, [CancelRequest(connection_id="hero-1", order_id="o-1")])
        ((claimed,),) = transitions.claim_next(db, {"hero-1": 1}, "w-1", 60).values()
    return claimed


def record(ledger: Engine, claimed: claims.AttemptClaim, status: Status, created: datetime | None) -> None:
    order = Order(id="o-1", status="open", shipped=False, document="{}", created_at=created)
    waits = {"run_at": NOW} if status is Status.WAITING else {}
    transition = Transition(
        status=status, attempts=1, reason="accepted", verdict=Verdict.ACCEPTED, order=order, **waits
    )
    row = AttemptRow(kind="cancel", started_at=claimed.claimed_at, reason="accepted")
    with ledger.begin() as db:
        results.commit_results(db, [results.AttemptResult(claim=claimed, attempts=(row,), transition=transition)])


@pytest.mark.usefixtures("shops")
def test_when_the_order_was_created_is_kept_with_the_answer_and_never_wiped(ledger: Engine) -> None:
    record(ledger, claim(ledger), Status.WAITING, CREATED)

    assert CREATED == created_at(ledger)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(status="pending", run_at=None))
        ((again,),) = transitions.claim_next(db, {"hero-1": 1}, "w-1", 60).values()
    record(ledger, again, Status.SUCCEEDED, None)
    assert CREATED == created_at(ledger)


@pytest.mark.usefixtures("shops")
def test_a_later_read_says_when_the_order_was_created_where_the_answer_did_not(ledger: Engine) -> None:
    record(ledger, claim(ledger), Status.SUCCEEDED, None)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(confirm_at=NOW - timedelta(hours=1)))
        (due,) = claims.claim_read_backs(db, 60, 10)
    assert created_at(ledger) is None

    order = Order(id="o-1", status="cancelled", shipped=False, document="{}", created_at=CREATED)
    proven = Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, as_of=NOW, order=order)
    with ledger.begin() as db:
        results.commit_results(db, [results.ConfirmResult(claim=due, attempts=(), confirmation=proven)])
    assert CREATED == created_at(ledger)


# ---- the command, and the warning


class Shell:
    """Runs commands in this process on the ledger of a test; returns their exit code and what they said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "argv", ["cancel-worker", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        written = self._capsys.readouterr()
        return int(ended.value.code or 0), written.out + written.err


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, redis_url: str
) -> Iterator[Shell]:
    monkeypatch.setattr(parts.console, "_width", 160)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    made: list[CancelClient] = []  # a process that ends closes its client; this one goes on
    monkeypatch.setattr(orders, "client", lambda: made.append(parts.client()) or made[-1])
    yield Shell(monkeypatch, capsys)
    for each in made:
        each.close()


def flat(said: str) -> str:
    return " ".join(said.split())


@pytest.mark.usefixtures("shops")
def test_the_command_says_shares_with_their_bounds_by_age_and_by_hour(ledger: Engine, shell: Shell) -> None:
    for _ in range(9):
        end(ledger, age=timedelta(minutes=20))
    end(ledger, "hero-2", age=timedelta(days=4), **FAILURE)
    end(ledger, "none", verdict="accepted")
    code, said = shell.run("windows")
    lines = [flat(line) for line in said.splitlines()]

    assert 0 == code
    when = f"{TODAY_AT_9:%Y-%m-%d %H:%M:%S} UTC"
    assert f"Of the newest 11 cancellations, received since {when}:" == lines[0]
    assert "shiphero" in lines
    for line in (
        f"at any time 9 of 10 60% to 98% {when}",
        f"the order 15 min to 1 h old 9 of 9 70% to 100% {when}",
        "the order 3 days old or older 0 of 1 0% to 79%",
        f"09:00 to 10:00 UTC 9 of 10 60% to 98% {when}",
        "the order of an age that nobody has said 0 of 0 nobody knows 1",
    ):
        assert line in lines
    assert "logiwa" not in said
    assert lines.index("shiphero") < lines.index("a warehouse system that nobody has stated")


@pytest.mark.usefixtures("shops")
def test_the_command_is_narrowed_to_a_connection_or_a_system(ledger: Engine, shell: Shell) -> None:
    end(ledger, "hero-1")
    end(ledger, "lo", sent=NOW - timedelta(days=40))

    assert "logiwa" not in shell.run("windows")[1]
    assert "logiwa" in shell.run("windows", "--days", "41")[1]
    assert "logiwa" not in shell.run("windows", "--days", "41", "-c", "hero-1")[1]
    assert "shiphero" not in shell.run("windows", "--days", "41", "--integration", "LOGIWA")[1]
    assert "No cancellation was received in the last 30 days." not in shell.run("windows")[1]
    assert 2 == shell.run("windows", "-c", "hero-1", "--integration", "logiwa")[0]


def test_the_command_has_nothing_to_say_of_an_empty_ledger(ledger: Engine, shell: Shell) -> None:
    del ledger
    assert (0, "No cancellation was received in the last 30 days.\n") == shell.run("windows")


@pytest.mark.usefixtures("shops")
def test_for_programs_each_count_is_an_object_of_its_own(ledger: Engine, shell: Shell) -> None:
    for _ in range(30):
        end(ledger, "lo", age=timedelta(hours=13), **FAILURE)
    of_all, of_age, of_hour = (json.loads(line) for line in shell.run("windows", "--json")[1].splitlines())
    counts = {"succeeded": 0, "failed": 30, "undecided": 0, "last_success": None}
    judged = {"integration_name": "logiwa", **counts, "low": 0.0, "high": 0.1135, "small": True}

    assert judged == of_all
    assert {**judged, "age_from": 43_200, "age_to": 86_400} == of_age
    assert {**judged, "hour_utc": 9} == of_hour


@pytest.mark.usefixtures("shops")
def test_who_enqueues_is_warned_where_the_chance_is_small(ledger: Engine, shell: Shell) -> None:
    for _ in range(30):
        end(ledger, "lo", **FAILURE)
        end(ledger, "hero-1", age=timedelta(hours=1))
        end(ledger, "hero-1", age=timedelta(days=5), **FAILURE)
    code, never = shell.run("enqueue", "o-1", "-c", "lo")
    old = shell.run("enqueue", "o-1", "-c", "hero-2")[1]

    assert 0 == code
    assert "The chance is small: of the cancels in this warehouse system 0 of 30 succeeded (at most 11%;" in never
    assert "of the cancels of orders 4 h old or older in this warehouse system 0 of 30 succeeded" in old
    assert "chance" not in shell.run("enqueue", "o-1", "-c", "none")[1]


@pytest.mark.usefixtures("shops")
def test_who_enqueues_in_an_hour_in_which_nothing_succeeds_is_warned_of_it(ledger: Engine, shell: Shell) -> None:
    now = datetime.now(UTC)
    for _ in range(30):
        end(ledger, sent=now - timedelta(hours=6))
        end(ledger, sent=now - timedelta(days=1), **FAILURE)
    said = shell.run("enqueue", "o-1", "-c", "hero-1")[1]

    hour = f"{now:%H}:00 to {now + timedelta(hours=1):%H}:00 UTC"
    if now.hour == datetime.now(UTC).hour:
        assert f"of the cancels sent from {hour} in this warehouse system 0 of 30 succeeded" in said


def test_a_ledger_that_is_away_warns_of_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/x")
    code, said = shell.run("enqueue", "o-1", "-c", "lo")

    assert (0, False) == (code, "chance" in said)
