"""Which connections Trackstar is asked about, what is kept of their crawls, and who may ask for one or look."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs
from sqlalchemy import Engine, insert, select, update

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.policy import Policy
from worker.cancellation.proof import NeedsPerson
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, Status, Verdict
from worker.ledger import connections, freshness, holds
from worker.ledger.freshness import Watch, crawls_of_all, keep
from worker.ledger.schema import cancellations
from worker.ledger.schema import freshness as kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from worker.ledger.vault import TokenVault

pytestmark = pytest.mark.usefixtures("shop")

NOW = datetime.now(UTC)
ENDED, LONG_AGO = NOW - timedelta(hours=2), NOW - timedelta(days=15)
SOON, LATER = NOW + timedelta(hours=6), NOW + timedelta(hours=7)  # however long the tests before take
WATCH_SECONDS = Policy().watch
ALL_KNOWN = Crawls(
    began_at=NOW - timedelta(minutes=30),
    ended_at=NOW - timedelta(minutes=28),
    before_began_at=NOW - timedelta(minutes=90),
    running_since=NOW - timedelta(minutes=1),
    frequency=3600.5,
    length=120.25,
    status=CrawlStatus.IN_PROGRESS,
    seen_at=NOW,
    ahead=1.5,
    running_ahead=-2.5,
    failed=NOW - timedelta(days=1),
)


def put(ledger: Engine, order_id: str = "o-1", connection_id: str = "shop-1", **changes: Any) -> None:
    """Put one cancellation that has ended without proof and waits for a crawl."""
    request = CancelRequest(connection_id=connection_id, order_id=order_id)
    row = {
        "id": request.record_id,
        "connection_id": connection_id,
        "order_id": order_id,
        "idempotency_key": request.intent_key,
        "priority": "normal",
        "requested_at": LONG_AGO,
        "received_at": LONG_AGO,
        "status": Status.REJECTED,
        "ended_at": ENDED,
        "verdict": Verdict.UNKNOWN,
        "known_by": SOON,
        **changes,
    }
    if row["status"] not in FINAL:
        row |= {"ended_at": None, "verdict": None}
    with ledger.begin() as db:
        db.execute(insert(cancellations).values(row))


def watched(ledger: Engine) -> list[Watch]:
    with ledger.connect() as db:
        return freshness.watched(db, WATCH_SECONDS)


def the_one(ledger: Engine) -> Watch:
    (found,) = watched(ledger)
    return found


# ---- who is asked about

PROVEN = {"known_by": None, "verdict": Verdict.CANCELLED, "status": Status.SUCCEEDED}
PERSON = {"known_by": None, "needs_person": NeedsPerson.ORDER_NOT_IN_COPY, "ended_at": LONG_AGO}


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        pytest.param(True, {}, id="waits for a crawl"),
        pytest.param(True, {"ended_at": LONG_AGO}, id="waits for a crawl, however long ago it ended"),
        pytest.param(True, PERSON, id="waits for a person, who may be spared"),
        pytest.param(True, PROVEN, id="cancelled: it may ship yet"),
        pytest.param(True, PROVEN | {"verdict": Verdict.ACCEPTED}, id="accepted"),
        pytest.param(False, PROVEN | {"ended_at": LONG_AGO}, id="cancelled, and it is no longer watched"),
        pytest.param(False, PROVEN | {"verdict": Verdict.NOT_CANCELLED}, id="proven not cancelled"),
        pytest.param(True, {"status": Status.WAITING, "run_at": SOON}, id="waits for its order to appear"),
        pytest.param(False, {"status": Status.PENDING, "known_by": None}, id="has not ended"),
    ],
)
def test_a_connection_is_asked_about_while_something_waits_for_proof_or_is_watched(
    ledger: Engine, expected: bool, changes: dict[str, Any]
) -> None:
    put(ledger, **changes)

    assert ["shop-1"] * expected == [each.connection_id for each in watched(ledger)]


def test_a_connection_of_which_there_is_nothing_is_not_asked_about(ledger: Engine) -> None:
    assert [] == watched(ledger)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        pytest.param(False, {}, id="nothing is late"),
        pytest.param(False, PROVEN, id="nothing waits"),
        pytest.param(True, {"known_by": ENDED}, id="a person must hear of it"),
    ],
)
def test_one_without_a_token_is_listed_only_where_something_should_be_known_by_now(
    ledger: Engine, expected: bool, changes: dict[str, Any]
) -> None:
    put(ledger, **changes)
    with ledger.begin() as db:
        connections.remove(db, "shop-1")

    assert [("shop-1", "", False)] * expected == [
        (each.connection_id, each.encrypted_token, each.readable) for each in watched(ledger)
    ]


def test_what_is_asked_about_says_what_waits_and_by_when(ledger: Engine, vault: TokenVault) -> None:
    put(ledger, known_by=LATER)
    put(ledger, "o-2", known_by=SOON)
    put(ledger, "o-3", **PERSON)
    found = the_one(ledger)

    assert (SOON, True, False, "shop-1", None) == (
        found.next_known_by, found.waits, found.with_person, found.trackstar_id, found.crawls,
    )  # fmt: skip
    assert "token-of-shop-1" == vault.decrypt(found.encrypted_token)
    assert (None, True, False) == (found.hold_reason, found.readable, found.asked)


@pytest.mark.parametrize(
    ("expected", "reason"), [(reason.value.startswith(("crawls", "no_")), reason) for reason in NeedsPerson], ids=str
)
def test_a_reason_for_a_person_that_may_pass_is_said(ledger: Engine, expected: bool, reason: NeedsPerson) -> None:
    put(ledger, **PERSON | {"needs_person": reason})

    assert (expected, False) == (the_one(ledger).with_person, the_one(ledger).waits)


@pytest.mark.parametrize(("expected", "reason"), [(True, "outage"), (True, "rate_limited"), (False, "operator")])
def test_what_is_held_is_listed_with_whether_its_orders_are_still_read(
    ledger: Engine, expected: bool, reason: str
) -> None:
    put(ledger)
    with ledger.begin() as db:
        holds.hold(db, ["shop-1"], reason)

    assert (reason, expected) == (the_one(ledger).hold_reason, the_one(ledger).readable)


# ---- what is kept


@pytest.mark.parametrize(
    "crawls", [ALL_KNOWN, Crawls(seen_at=NOW), structs.replace(ALL_KNOWN, running_since=None, failed=None)]
)
def test_what_was_seen_of_crawls_is_kept_as_it_was_and_the_latest_counts(ledger: Engine, crawls: Crawls) -> None:
    put(ledger)
    for each in (ALL_KNOWN, crawls):
        with ledger.begin() as db:
            keep(db, {"shop-1": each})

    with ledger.connect() as db:
        assert {"shop-1": crawls} == crawls_of_all(db)
    assert (crawls, True) == (the_one(ledger).crawls, the_one(ledger).asked)


def test_one_of_which_trackstar_says_nothing_was_asked_about_and_nothing_is_known(ledger: Engine) -> None:
    put(ledger)
    with ledger.begin() as db:
        keep(db, {"shop-1": None})

    with ledger.connect() as db:
        assert {} == crawls_of_all(db)
    assert (None, True) == (the_one(ledger).crawls, the_one(ledger).asked)


def test_under_which_id_trackstar_knows_it_is_kept_beside_its_crawls(ledger: Engine) -> None:
    put(ledger)
    with ledger.begin() as db:
        freshness.set_trackstar_id(db, "shop-1", "ts-1")
        keep(db, {"shop-1": ALL_KNOWN})

    assert ("ts-1", ALL_KNOWN) == (the_one(ledger).trackstar_id, the_one(ledger).crawls)


# ---- who may ask for a crawl, and who may look


def both(ledger: Engine, claim: Callable[[Connection], bool]) -> list[bool]:
    """Let two try it at the same time."""
    ready = Barrier(2)

    def race(_: int) -> bool:
        ready.wait()
        with ledger.begin() as db:
            return claim(db)

    with ThreadPoolExecutor(2) as pool:
        return sorted(pool.map(race, range(2)))


def let_time_pass(ledger: Engine, column: str) -> None:
    with ledger.begin() as db:
        db.execute(update(kept).values({column: ENDED}))


def claim_forcing(db: Connection) -> bool:
    return freshness.claim_forcing(db, "shop-1", 300)


def claim_look(db: Connection) -> bool:
    return freshness.claim_look(db, "shop-1", 60)


def test_of_two_that_would_ask_for_a_crawl_one_does_and_nobody_again_before_its_time(ledger: Engine) -> None:
    assert [False, True] == both(ledger, claim_forcing)
    assert [False, False] == both(ledger, claim_forcing)
    let_time_pass(ledger, "force_after")
    assert [False, True] == both(ledger, claim_forcing)


def test_where_trackstar_refuses_nobody_asks_for_a_crawl_for_a_while(ledger: Engine) -> None:
    put(ledger)
    with ledger.begin() as db:
        freshness.put_off_forcing(db, "shop-1", 3600)
        assert not claim_forcing(db)

    found = the_one(ledger)
    assert found.force_after is not None
    assert timedelta(seconds=3590) < found.force_after - found.now <= timedelta(seconds=3600)


def test_of_two_that_would_look_one_does_and_another_after_it_was_lost(ledger: Engine) -> None:
    with ledger.begin() as db:
        assert not claim_look(db)  # nothing was ever known of it
        freshness.look_now(db, "shop-1")

    assert [False, True] == both(ledger, claim_look)
    let_time_pass(ledger, "look_at")
    assert [False, True] == both(ledger, claim_look)


@pytest.mark.parametrize(("expected", "again"), [(None, None), (3600.0, timedelta(hours=1))], ids=["told", "hourly"])
def test_how_far_was_looked_is_kept_with_when_it_is_looked_again(
    ledger: Engine, expected: float | None, again: timedelta | None
) -> None:
    put(ledger)
    with ledger.begin() as db:
        keep(db, {"shop-1": ALL_KNOWN})
        freshness.look_now(db, "shop-1")
        freshness.looked(db, "shop-1", NOW, again)

    found = the_one(ledger)
    seconds = (found.look_at - found.now).total_seconds() if found.look_at else None
    assert (NOW, ALL_KNOWN) == (found.looked_to, found.crawls)
    assert seconds == (expected and pytest.approx(expected, abs=10))


@pytest.mark.parametrize("crawls", [ALL_KNOWN, None], ids=["told", "nothing is told"])
def test_the_first_look_goes_back_a_day_from_the_first_question_however_late_it_comes(
    ledger: Engine, crawls: Crawls | None
) -> None:
    put(ledger)
    with ledger.begin() as db:
        freshness.look_now(db, "shop-1")
    assert the_one(ledger).looked_to is None
    with ledger.begin() as db:
        keep(db, {"shop-1": crawls})
    first = the_one(ledger)
    with ledger.begin() as db:
        keep(db, {"shop-1": crawls})

    assert first.looked_to is not None
    assert timedelta(days=1) <= first.now - first.looked_to < timedelta(days=1, seconds=10)
    assert first.looked_to == the_one(ledger).looked_to


def test_what_is_noted_of_one_connection_is_not_noted_of_another(ledger: Engine, vault: TokenVault) -> None:
    with ledger.begin() as db:
        connections.add(db, "shop-2", vault.encrypt("token"))
        freshness.look_now(db, "shop-2")
        freshness.look_now(db, "shop-1")
        assert claim_look(db)
        assert claim_forcing(db)
        looks = {row[0]: row[1] for row in db.execute(select(kept.c.connection_id, kept.c.force_after))}

        assert looks["shop-2"] is None
        assert freshness.claim_look(db, "shop-2", 60)
