"""Whose rows go next, who is held and who may probe; on both databases."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, select, update

from worker.cancellation.lifecycle import Moment, give_up
from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.ledger import binding, connections, deadlines, holds, queries, transitions
from worker.ledger.schema import cancellations, events
from worker.ledger.schema import connections as connection_rows
from worker.ledger.transitions import end_unsent
from worker.ledger.vault import TokenVault, of_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c
START = datetime.now(UTC) - timedelta(minutes=30)  # within the hour for which it counts
SHOPS = ("shop-1", "shop-2", "shop-3")


@pytest.fixture(autouse=True)
def shops(ledger: Engine, vault: TokenVault) -> None:
    with ledger.begin() as db:
        for name in SHOPS:
            connections.add(db, name, vault.encrypt(f"token-of-{name}"))


def accept(ledger: Engine, *jobs: dict[str, Any]) -> None:
    """Accept jobs in this order, each asked for a second after the one before."""
    requests = [
        CancelRequest(**{"connection_id": "shop-1", "requested_at": START + timedelta(seconds=number), **job})
        for number, job in enumerate(jobs)
    ]
    with ledger.begin() as db:
        transitions.accept(db, requests)


def claim(ledger: Engine, shares: dict[str, int], **options: Any) -> dict[str, list[str]]:
    """Claim, and return the order ids by connection."""
    with ledger.begin() as db:
        claimed = transitions.claim_next(db, shares, "w-1", 60, **options)
    return {name: [each.order_id for each in claims] for name, claims in claimed.items()}


def hold(ledger: Engine, reason: str, *names: str, due: bool = True) -> None:
    with ledger.begin() as db:
        holds.hold(db, names, reason)
        if due:
            past = datetime.now(UTC) - timedelta(seconds=1)
            db.execute(
                update(connection_rows).where(connection_rows.c.id.in_(names)).values(probe_at=past, held_at=past)
            )


def probes(ledger: Engine) -> list[str]:
    with ledger.begin() as db:
        return holds.claim_probes(db)


def told(ledger: Engine) -> list[tuple[str, Any]]:
    with ledger.connect() as db:
        rows = db.execute(select(events.c.type, events.c.payload).order_by(events.c.id))
        return [(row.type, json.loads(row.payload)) for row in rows]


MIXED: Sequence[dict[str, Any]] = (
    {"order_id": "bulk-old", "priority": "bulk"},
    {"order_id": "normal-late", "send_by": START + timedelta(days=400)},
    {"order_id": "normal-first"},
    {"order_id": "normal-second"},
    {"order_id": "normal-soon", "send_by": START + timedelta(days=300)},
    {"order_id": "urgent-first", "priority": "urgent"},
    {"order_id": "urgent-soon", "priority": "urgent", "send_by": START + timedelta(days=300)},
)
IN_TURN = ["urgent-soon", "urgent-first", "normal-soon", "normal-late", "normal-first", "normal-second", "bulk-old"]


def test_urgent_goes_before_normal_before_bulk_then_the_earliest_deadline_then_first_come(ledger: Engine) -> None:
    accept(ledger, *MIXED)

    assert {"shop-1": IN_TURN} == claim(ledger, {"shop-1": 100})


def test_what_is_taken_in_parts_comes_in_the_same_order(ledger: Engine) -> None:
    accept(ledger, *MIXED)

    assert IN_TURN == [claim(ledger, {"shop-1": 1})["shop-1"][0] for _ in MIXED]
    assert {} == claim(ledger, {"shop-1": 1})


def test_each_connection_gets_its_own_share(ledger: Engine) -> None:
    accept(ledger, *({"connection_id": name, "order_id": f"{name}-{n}"} for n in range(4) for name in SHOPS))
    claimed = claim(ledger, {"shop-1": 3, "shop-2": 1})

    assert {"shop-1": ["shop-1-0", "shop-1-1", "shop-1-2"], "shop-2": ["shop-2-0"]} == claimed


def test_a_part_of_the_share_goes_to_whoever_has_waited_longest(ledger: Engine) -> None:
    accept(ledger, *MIXED)

    assert {"urgent-soon", "bulk-old"} == set(claim(ledger, {"shop-1": 2}, aged={"shop-1": 1})["shop-1"])


def test_bulk_is_sent_although_urgents_never_end(ledger: Engine) -> None:
    accept(ledger, {"order_id": "bulk", "priority": "bulk"})
    for number in range(10):
        accept(ledger, *({"order_id": f"urgent-{number}-{n}", "priority": "urgent"} for n in range(3)))
        sent = claim(ledger, {"shop-1": 1}, aged={"shop-1": 1} if number == 7 else None)
        if "bulk" in sent["shop-1"]:
            return
    pytest.fail("The bulk job starved.")


def test_a_held_connection_sends_nothing_beside_one_that_may(ledger: Engine) -> None:
    accept(ledger, {"order_id": "held"}, {"order_id": "free", "connection_id": "shop-2"})
    hold(ledger, "credentials", "shop-1", due=False)
    assert {"shop-2": ["free"]} == claim(ledger, {"shop-1": 5, "shop-2": 5})


def test_a_held_connection_sends_nothing_but_a_probe(ledger: Engine) -> None:
    accept(ledger, {"order_id": "a"}, {"order_id": "b"})
    hold(ledger, holds.OUTAGE, "shop-1")

    assert {} == claim(ledger, {"shop-1": 5}, aged={"shop-1": 1})
    assert ["shop-1"] == probes(ledger)
    assert {"shop-1": ["a"]} == claim(ledger, {"shop-1": 1}, probes=True)


def test_a_hold_touches_no_row_and_is_told_once(ledger: Engine) -> None:
    accept(ledger, {"order_id": "a"}, {"order_id": "b"})
    with ledger.begin() as db:
        before = db.execute(select(cancellations).order_by(c.id)).all()
        assert {"shop-1"} == holds.hold(db, ["shop-1"], holds.OUTAGE)
        assert frozenset() == holds.hold(db, ["shop-1"], holds.CREDENTIALS)
        assert before == db.execute(select(cancellations).order_by(c.id)).all()
        assert {"shop-1"} == holds.resume(db, ["shop-1"], holds.ALL)

    assert [
        ("connection.held", {"connection_id": "shop-1", "reason": "outage"}),
        ("connection.resumed", {"connection_id": "shop-1"}),
    ] == told(ledger)


@pytest.mark.parametrize("reason", [holds.CREDENTIALS, holds.OUTAGE])
def test_one_of_many_workers_probes_and_the_next_probe_is_put_off(ledger: Engine, reason: str) -> None:
    accept(ledger, {"order_id": "a"})
    hold(ledger, reason, "shop-1")
    with ThreadPoolExecutor(4) as pool:
        found = [name for part in pool.map(lambda _: probes(ledger), range(4)) for name in part]

    assert ["shop-1"] == found


def test_what_a_person_holds_or_nobody_added_is_not_probed(ledger: Engine) -> None:
    accept(ledger, {"order_id": "a"}, {"connection_id": "nobody", "order_id": "b"})
    with ledger.begin() as db:
        assert holds.hold_by_operator(db, "shop-1")

    assert [] == probes(ledger)


def test_a_connection_without_work_is_not_probed(ledger: Engine) -> None:
    hold(ledger, holds.OUTAGE, "shop-1")

    assert [] == probes(ledger)


def test_when_trackstar_is_held_one_probe_serves_all_connections(ledger: Engine) -> None:
    accept(ledger, *({"connection_id": name, "order_id": name} for name in SHOPS))
    hold(ledger, holds.CREDENTIALS, "shop-3", due=False)
    with ledger.begin() as db:
        assert 2 == holds.hold_all(db)
        past = datetime.now(UTC) - timedelta(seconds=1)
        db.execute(
            update(connection_rows)
            .where(connection_rows.c.hold_reason == holds.TRACKSTAR_OUTAGE)
            .values(probe_at=past, held_at=past)
        )

    assert 1 == len(probes(ledger))
    assert [] == probes(ledger)
    with ledger.begin() as db:
        assert 2 == holds.resume_all(db)
        assert 0 == holds.resume_all(db)
    assert ["connection.held", "trackstar.held", "trackstar.resumed"] == [kind for kind, _ in told(ledger)]


def test_the_expected_time_is_the_backlog_ahead_divided_by_the_pace(ledger: Engine) -> None:
    accept(ledger, *({"order_id": f"o-{n}"} for n in range(99)), {"order_id": "urgent", "priority": "urgent"})
    with ledger.connect() as db:
        ids = {row.order_id: str(row.id) for row in db.execute(select(c.id, c.order_id))}
        expected = {name: queries.expected_at(db, ids[name], 50.0) for name in ("urgent", "o-0", "o-49", "o-98")}
    base = expected["urgent"]
    assert base is not None

    seconds = [(expected[name] - base).total_seconds() for name in ("o-0", "o-49", "o-98")]  # type: ignore[operator]
    assert [1 / 49, 50 / 49, 99 / 49] == pytest.approx(seconds, abs=0.2)
    with ledger.connect() as db:
        due, held_by = queries.next_turn(db, "shop-1", "normal", 50.0)
        assert due is not None
        assert (100 / 49, None) == (pytest.approx((due - base).total_seconds(), abs=0.2), held_by)


def test_every_job_is_expected_in_its_turn(ledger: Engine) -> None:
    accept(ledger, *MIXED)
    with ledger.connect() as db:
        ids = {row.order_id: str(row.id) for row in db.execute(select(c.id, c.order_id))}
        expected = [queries.expected_at(db, ids[name], 1.0) for name in IN_TURN]
        ahead = [queries.next_turn(db, "shop-1", priority, 1.0)[0] for priority in ("urgent", "normal", "bulk")]

    seconds = [round((each - expected[0]).total_seconds()) for each in (*expected, *ahead)]  # type: ignore[operator]
    assert [0, 1, 2, 3, 4, 5, 6, *(2, 6, 7)] == seconds


def test_a_held_job_has_no_expected_time(ledger: Engine) -> None:
    accept(ledger, {"order_id": "a"})
    hold(ledger, holds.OUTAGE, "shop-1")
    with ledger.connect() as db:
        (record_id,) = db.execute(select(c.id)).scalars()

        assert queries.expected_at(db, str(record_id), 50.0) is None
        assert (None, "outage") == queries.next_turn(db, "shop-1", "normal", 50.0)


def test_a_job_that_cannot_make_its_deadline_is_found_and_announced_once(ledger: Engine) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    accept(
        ledger,
        *({"order_id": f"u-{n}", "priority": "urgent"} for n in range(5)),
        {"order_id": "at-risk", "send_by": soon},
        {"order_id": "first-in-line", "connection_id": "shop-2", "send_by": soon},
    )
    with ledger.begin() as db:
        (row,) = deadlines.at_risk(db, 100)
        assert ("at-risk", 5) == (row.order_id, row.place)
        assert 1 == deadlines.warn(db, [(row, soon + timedelta(seconds=9))])
        assert 0 == deadlines.warn(db, [(row, soon + timedelta(seconds=9))])
        assert [] == deadlines.at_risk(db, 100)

    ((kind, payload),) = told(ledger)
    assert ("cancellation.wont_make_it", "at-risk") == (kind, payload["order_id"])


def test_what_is_pending_beyond_the_retry_horizon_is_given_up_truthfully(ledger: Engine) -> None:
    accept(ledger, {"order_id": "never-sent"}, {"order_id": "sent"}, {"order_id": "doubted"}, {"order_id": "young"})
    long_ago = datetime.now(UTC) - timedelta(hours=25)
    with ledger.begin() as db:
        for name, sent, verdict in (("sent", long_ago, None), ("doubted", long_ago, "unknown"), ("young", None, None)):
            change = update(cancellations).where(c.order_id == name)
            db.execute(change.values(first_sent_at=sent or datetime.now(UTC), verdict=verdict))
        found = deadlines.past_retry_horizon(db, 86_400, limit=10)
        decided = {row.order_id: give_up(row.state, Moment(now=row.now, policy=Policy())) for row in found}
        assert 2 == len(end_unsent(db, [(row.id, decided[row.order_id]) for row in found]))

    assert {"sent": ("exhausted", "not_cancelled"), "doubted": ("exhausted", "unknown")} == {
        name: (transition.status, transition.verdict) for name, transition in decided.items()
    }


def test_a_removed_connection_keeps_its_jobs_waiting_and_its_history(ledger: Engine, vault: TokenVault) -> None:
    accept(ledger, {"order_id": "a"})
    with ledger.begin() as db:
        connections.remove(db, "shop-1")
    assert {} == claim(ledger, {"shop-1": 1})
    with ledger.begin() as db:
        connections.add(db, "shop-1", vault.encrypt("new"))

    assert {"shop-1": ["a"]} == claim(ledger, {"shop-1": 1})


def test_tokens_are_encrypted_anew_with_the_first_key(ledger: Engine, credential_key: str) -> None:
    fresh = Fernet.generate_key().decode()
    with ledger.begin() as db:
        assert (3, 0) == binding.rekey(db, TokenVault([fresh, credential_key]))
        encrypted = connections.encrypted_tokens(db)

    assert "token-of-shop-1" == TokenVault([fresh]).decrypt(encrypted["shop-1"], of_connection("shop-1"))
