"""What Trackstar may answer, and what is recorded for it, compared with what really happened to the order.

All cases of one database are sent at once through one deployment with a real worker, and then looked at one by one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from harness.deployment import token_of
from harness.settings import SHORT
from harness.truth import record_id

from worker.dev.sandbox import Truth
from worker.ledger import holds
from worker.ledger.queries import Timeline
from worker.ledger.record import Cancellation

if TYPE_CHECKING:
    from harness.deployment import Deployment, MakeDeployment

    from worker.dev.sandbox.options import WorldOptions
    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
SETTINGS = SHORT | {
    "RETRY_CAP_SECONDS": "2",
    "RETRY_HORIZON_SECONDS": "12",
    "CONNECT_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "34",  # five times what these limits need: no claim is lost, however busy this machine is
    "MAX_RESPONSE_BYTES": "65536",
    "CONCURRENCY": "64",
    "READS_PER_SECOND": "100",
    "NOT_FOUND_GRACE_SECONDS": "3",
}
# Each step of the ladder is longer than two crawls, as in production.
SYNC_SECONDS = 0.4
DONE_SECONDS = 60.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One order, what is answered about it, and how its cancellation must end."""

    name: str
    script: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    order: dict[str, Any] | None = msgspec.field(default_factory=dict)  # None: Trackstar does not know it
    connection: str = SHOP
    send_by_in: float | None = None

    status: str = "succeeded"
    verdict: str = "cancelled"
    evidence: str | None = "response"
    attempts: int | None = 1  # None: depends on the clock
    refund: str = "yes"
    needs_person: str | None = None
    trail: tuple[str, ...] = ()  # the reasons of its requests, repetitions once
    really: str = "cancelled"
    effective: int = 1  # how often the warehouse cancelled it


def accepted(name: str, *script: str, trail: tuple[str, ...] = (), **other: Any) -> Case:
    """A cancel that is answered with yes in the end."""
    return Case(name=name, script=script, trail=(*trail, "accepted"), **{"attempts": 1 + len(trail), **other})


def replayed(name: str, step: str, reason: str) -> Case:
    """The first yes got lost on the way; the second request is answered with the stored one, which is read back."""
    trail = (reason, "accepted", "read_cancelled")
    return Case(name=name, script=(step,), trail=trail, attempts=2, evidence="replayed_response")


def refused(name: str, *script: str, trail: tuple[str, ...], **other: Any) -> Case:
    """A cancel that is refused for good, and the order is open."""
    expected = {"status": "rejected", "verdict": "not_cancelled", "evidence": "refusal", "refund": "no"}
    return Case(name=name, script=script, trail=trail, **{**expected, "really": "open", "effective": 0, **other})


def found(name: str, *script: str, trail: tuple[str, ...], **other: Any) -> Case:
    """A refusal, and a read-back proves that the order is cancelled."""
    return Case(name=name, script=script, trail=(*trail, "read_cancelled"), **{"evidence": "read_back", **other})


def unproven(name: str, *script: str, trail: tuple[str, ...], **other: Any) -> Case:
    """A cancel of which no read tells: a person must."""
    expected = {"verdict": "unknown", "evidence": None, "refund": "not yet"}
    return refused(name, *script, trail=trail, **expected | other)


REFUSED = "refused_by_warehouse"
SHIPPED_ITEM = {"shipments": [{"shipment_id": "s-1", "status": "shipped"}]}
SHIPPED: dict[str, Any] = {"evidence": "read_back", "trail": (REFUSED, "read_shipped"), "really": "fulfilled"}
OPEN_AT_LAST: dict[str, Any] = {"evidence": "fresh_read_back"}
IN_DOUBT: dict[str, Any] = OPEN_AT_LAST | {"attempts": 2}
UNREADABLE: dict[str, Any] = {"needs_person": "unreadable", "attempts": None}

CASES = [
    # Yes.
    accepted("yes"),
    accepted("a/b c%?#+=\N{SNOWMAN}"),
    accepted("picked", order={"status": "picked"}),
    Case(
        name="yes, but it stays open",
        script=("open",),
        verdict="accepted",
        refund="not yet",
        needs_person="accepted_but_open",
        trail=("accepted", "read_open"),
        really="open",
        effective=0,
    ),
    Case(
        name="yes, and it is cancelled later",
        script=("open:0.3",),
        reads=("fresh",) * 3,
        evidence="read_back",
        trail=("accepted", "read_cancelled"),
    ),
    Case(
        name="yes, and it is shipped later",
        script=("open:ship:0.3",),
        reads=("fresh",) * 3,
        verdict="not_cancelled",
        evidence="read_back",
        refund="no",
        trail=("accepted", "read_shipped"),
        really="fulfilled",
        effective=0,
    ),
    # Yes, but the answer does not come through.
    replayed("yes, reset", "succeeded_then:reset", "connection_lost"),
    replayed("yes, closed", "succeeded_then:close", "connection_lost"),
    replayed("yes, 500", "succeeded_then:500", "http_500"),
    replayed("yes, dripping head", "drip_head:0.3", "read_timeout"),
    # Yes, but it cannot be read: the order is looked at.
    found("yes, cut body", "cut", trail=("cut_body",)),
    found("yes, dripping body", "drip:0.3", trail=("read_timeout",)),
    found("yes, too large", "huge:100000", trail=("body_too_large",)),
    found("yes, wrong ids", "wrong_id", trail=("wrong_order_in_answer",)),
    found("yes, wrong outer id", "wrong_id:outer", trail=("wrong_order_in_answer",)),
    accepted("200 html", "html:200", trail=("not_json", "read_open"), attempts=2),
    accepted("200 empty", "empty", trail=("unexpected_body", "read_open"), attempts=2),
    accepted("200 list", "list", trail=("unexpected_body", "read_open"), attempts=2),
    # Nothing happened, and nobody can know: asked again.
    *(accepted(f"{code} trackstar", f"{code}", trail=(f"http_{code}",)) for code in (408, 500, 502, 503, 504, 599)),
    *(accepted(f"{code} integration", f"{code}:integration", trail=(f"http_{code}",)) for code in (500, 503)),
    accepted("500 unsigned", "500:none", trail=("http_500",)),
    accepted("502 html", "html", trail=("http_502",)),
    accepted("404 html", "html:404", trail=("http_404",)),
    accepted("redirect", "redirect", trail=("redirected",)),
    accepted("reset", "reset", trail=("connection_lost",)),
    accepted("closed", "close", trail=("connection_lost",)),
    # The key is busy until Trackstar notices that nobody listens any more.
    accepted("hang", "hang:6", trail=("read_timeout", "still_running"), attempts=2),
    accepted("three faults", "503", "reset", "502", trail=("http_503", "connection_lost", "http_502")),
    accepted("503, come later", "503:trackstar:1", trail=("http_503",)),
    # Patience spends no attempt.
    accepted("429", "429:1", trail=("rate_limited",), attempts=1),
    accepted("429 integration", "429:integration", "429:integration", trail=("rate_limited",), attempts=1),
    accepted("409 in flight", "409", "409", trail=("still_running",), attempts=1),
    # No, for good.
    refused("400 key reused", "400", trail=("key_reused",)),
    refused("403 not enabled", "403", trail=("not_enabled",)),
    refused("422", "422", trail=("validation_failed",)),
    refused("410", "410", trail=("http_410",)),
    refused("501 trackstar", "501", trail=("not_supported",)),
    refused("501 integration", "501:integration", trail=("not_supported",)),
    refused("404 not found", trail=("order_not_found",), order=None, attempts=None),
    # The warehouse says no: the order is looked at, until its copy is younger than our request.
    refused("no, open", "400:integration", trail=(REFUSED, "read_open"), **OPEN_AT_LAST),
    refused("no, 404 integration", "404:integration", trail=(REFUSED, "read_open"), **OPEN_AT_LAST),
    refused("no, 409 integration", "409:integration", trail=(REFUSED, "read_open"), **OPEN_AT_LAST),
    refused("no, unsigned", "400:none", trail=("http_400", "read_open"), **OPEN_AT_LAST),
    refused("no, not in the copy yet", "400:integration", reads=("missing",),
            trail=(REFUSED, "order_not_found", "read_open"), **OPEN_AT_LAST),
    unproven("no, never in the copy", "400:integration", reads=("missing",) * 9, needs_person="order_not_in_copy",
             trail=(REFUSED, "order_not_found")),
    found("no, by others, seen later", order={"status": "cancelled"}, reads=("stale:open",), effective=0,
          status="rejected", trail=(REFUSED, "read_open")),
    refused("no, shipped", order={"status": "fulfilled"}, **SHIPPED),
    refused("no, in part", order={"status": "partially_fulfilled"}, **SHIPPED | {"really": "partially_fulfilled"}),
    refused("no, shipment", order={"document": SHIPPED_ITEM}, **SHIPPED | {"really": "open"}),
    found("no, cancelled before", order={"status": "cancelled"}, trail=(REFUSED,), effective=0),
    found("no, and it was done", "applied_then:400:integration", reads=("fresh",), trail=(REFUSED,)),
    found("no, read at last", order={"status": "cancelled"}, reads=("503", "reset"), attempts=3, effective=0,
          trail=(REFUSED, "http_503", "connection_lost")),
    # Done without a word: the second request is refused, and that proves nothing.
    found("done, 500", "applied_then:500", reads=("fresh",), attempts=2, trail=("http_500", REFUSED)),
    found("done, reset", "applied_then:reset", reads=("fresh",), attempts=2, trail=("connection_lost", REFUSED)),
    found("done, cut body", "applied_then:cut", reads=("fresh",), trail=("cut_body",)),
    found("done, html", "applied_then:html", reads=("fresh",), attempts=2, trail=("http_502", REFUSED)),
    found("done, hang", "applied_then:hang:6", reads=("fresh",), attempts=2,
          trail=("read_timeout", "still_running", REFUSED)),
    found("done, read at last", "applied_then:500", reads=("429:none:1", "503", "fresh"), attempts=3,
          trail=("http_500", REFUSED, "rate_limited", "http_503")),
    found("done, seen later", "applied_then:500", reads=("stale", "stale", "fresh"), attempts=2, status="rejected",
          trail=("http_500", REFUSED, "read_open")),
    unproven("done, never read", "applied_then:500", reads=("503",) * 99, trail=("http_500", REFUSED, "http_503"),
             really="cancelled", effective=1, **UNREADABLE),
    refused("doubt, then no", "500", "422", trail=("http_500", "validation_failed", "read_open"), **IN_DOUBT),
    refused("doubt, then 501", "reset", "501", trail=("connection_lost", "not_supported", "read_open"), **IN_DOUBT),
    refused("doubt, then shipped", "500", order={"status": "fulfilled"}, attempts=2,
            **SHIPPED | {"trail": ("http_500", REFUSED, "read_shipped")}),
    # Too late to be sent.
    refused("too late", send_by_in=-1, status="expired", evidence="never_sent", attempts=0, trail=()),
    refused("too late by patience", *["429"] * 50, send_by_in=8, status="expired", evidence="never_sent",
            attempts=0, trail=("rate_limited",)),
    refused("too late in doubt", *["503"] * 50, send_by_in=8, status="expired", trail=("http_503", "read_open"),
            **IN_DOUBT | {"attempts": None}),
    # Connections of their own.
    *(accepted(f"wrong token {n}", connection="wrong-token", trail=("unauthorized",), attempts=1) for n in range(3)),
    accepted("403 integration", "403:integration", connection="locked-out", trail=("warehouse_credentials",),
             attempts=1),
    unproven("horizon", connection="down", status="exhausted", trail=("http_503",), **UNREADABLE),
]  # fmt: skip


class Outcomes(msgspec.Struct, frozen=True):
    """What was recorded, what really happened, and what was told."""

    timelines: dict[str, Timeline]
    truths: dict[str, Truth]
    told: dict[str, list[dict[str, Any]]]
    while_held: dict[str, Cancellation]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_each_answer_ends_as_promised(
    make_deployment: MakeDeployment, vault: TokenVault, subtests: pytest.Subtests, kind: str
) -> None:
    outcomes = _run(make_deployment, vault, kind)
    for case in CASES:
        with subtests.test("ends as promised", case=case.name):
            _ends_as_promised(outcomes, case)
        with subtests.test("agrees with the truth", case=case.name):
            _agrees_with_the_truth(outcomes, case)
        with subtests.test("is told once", case=case.name):
            _is_told_once(outcomes, case)
    for promise in PROMISES:
        with subtests.test(promise.__name__):
            promise(outcomes)


def _run(make_deployment: MakeDeployment, vault: TokenVault, kind: str) -> Outcomes:
    options: WorldOptions = {"writes_per_second": None, "reads_per_second": None, "sync_seconds": SYNC_SECONDS}
    with make_deployment(kind, SETTINGS, **options) as deployment:
        _arrange(deployment, vault)
        deployment.start_worker().wait_until_ready()
        ids = deployment.client.enqueue_many(_job(case) for case in CASES)
        names = {each: case.name for each, case in zip(ids, CASES, strict=True)}
        while_held = _correct_what_is_held(deployment, vault)
        deployment.wait_until(
            lambda: all(each.ended and not each.confirm_at for each in deployment.all()), "every end", DONE_SECONDS
        )
        deployment.wait_until(lambda: len(_told(deployment, names)) == len(CASES), "every event")
        return Outcomes(
            {names[each]: deployment.timeline(each) for each in ids},
            {order.order_id: order.truth for order in deployment.trackstar.orders()},
            _told(deployment, names),
            while_held,
        )


def _job(case: Case) -> dict[str, Any]:
    send_by = None if case.send_by_in is None else datetime.now(UTC) + timedelta(seconds=case.send_by_in)
    return {"connection_id": case.connection, "order_id": case.name, "send_by": send_by}


def _arrange(deployment: Deployment, vault: TokenVault) -> None:
    deployment.connect(vault, dict.fromkeys(case.connection for case in CASES))
    deployment.add_connection(vault, "wrong-token", "an-old-token")
    deployment.trackstar.connect("down", fault="503")
    for case in CASES:
        if case.order is not None:
            deployment.trackstar.add_order(
                case.connection, case.name, script=case.script, reads=case.reads, **case.order
            )


def _correct_what_is_held(deployment: Deployment, vault: TokenVault) -> dict[str, Cancellation]:
    held = ("wrong-token", "locked-out")
    deployment.wait_until(lambda: all(deployment.hold_of(name) for name in held), "both holds")
    waiting = {each.order_id: each for each in deployment.all() if each.connection_id in held}
    deployment.add_connection(vault, "wrong-token", token_of("wrong-token"))
    with deployment.ledger.begin() as db:
        assert holds.resume(db, ["locked-out"], holds.ALL)
    return waiting


def _told(deployment: Deployment, names: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    told: dict[str, list[dict[str, Any]]] = {}
    for _, fields in deployment.redis.xrange("cancellations:events"):
        event = msgspec.json.decode(fields[b"event"])
        if event["type"].startswith("cancellation.") and event["cancellation_id"] in names:
            told.setdefault(names[event["cancellation_id"]], []).append(event)
    return told


def _reasons(timeline: Timeline) -> tuple[str, ...]:
    return tuple(reason for reason, _ in groupby(row["reason"] for row in timeline.attempts))


def _ends_as_promised(outcomes: Outcomes, case: Case) -> None:
    ended = outcomes.timelines[case.name].cancellation

    assert (case.status, case.verdict, case.evidence, case.refund, case.needs_person, case.trail) == (
        ended.status,
        ended.verdict,
        ended.evidence,
        str(ended.safe_to_refund),
        ended.needs_person,
        _reasons(outcomes.timelines[case.name]),
    )
    assert case.attempts in {None, ended.attempts}


def _agrees_with_the_truth(outcomes: Outcomes, case: Case) -> None:
    if case.order is None:
        assert case.name not in outcomes.truths
        return
    truth, timeline = outcomes.truths[case.name], outcomes.timelines[case.name]
    refund = str(timeline.cancellation.safe_to_refund)

    assert (case.really, case.effective) == (truth.status, truth.effective_cancels)
    assert ("no" if truth.status == "cancelled" else "yes") != refund
    # Never two at once, never a second key, and every request that Trackstar saw is on record.
    assert truth.max_in_flight <= 1
    assert {timeline.cancellation.id} >= set(truth.keys)
    seen = [row for row in timeline.attempts if row["reason"] != "unauthorized"]  # whose token named no connection
    answered = [row["request_id"] for row in seen if row["request_id"]]
    assert len(truth.requests) == len(seen)
    assert answered == [request.id for request in truth.requests if request.id in answered]


def _is_told_once(outcomes: Outcomes, case: Case) -> None:
    told, ended = outcomes.told[case.name], outcomes.timelines[case.name].cancellation

    assert "cancellation.ended" == told[0]["type"]
    assert ["cancellation.ended"] == [event["type"] for event in told if event["type"] == "cancellation.ended"]
    assert (ended.status, ended.verdict, ended.evidence, str(ended.safe_to_refund)) == (
        told[-1]["status"],
        told[-1]["verdict"],
        told[-1]["evidence"],
        told[-1]["safe_to_refund"],
    )


def a_verdict_is_told_again_when_a_later_read_raises_it(outcomes: Outcomes) -> None:
    # On a busy machine a read comes later than it was expected, and its date moves.
    told_of = {
        name: [event for event in told if event["type"] != "cancellation.known_by_moved"]
        for name, told in outcomes.told.items()
    }
    later = {name: [event["type"] for event in told[1:]] for name, told in told_of.items() if len(told) > 1}
    raised = {case.name for case in CASES if case.evidence == "fresh_read_back"}
    for_a_person = {case.name for case in CASES if case.needs_person}

    assert {
        "yes, and it is cancelled later": ["cancellation.verdict_raised"],
        "yes, and it is shipped later": ["cancellation.contradicted"],
        "done, seen later": ["cancellation.verdict_raised"],
        "no, by others, seen later": ["cancellation.verdict_raised"],
        **{name: ["cancellation.verdict_raised"] for name in raised},
        **{name: ["cancellation.needs_person"] for name in for_a_person},
    } == later
    assert ["not yet", "yes"] == [event["safe_to_refund"] for event in told_of["done, seen later"]]
    assert ["not yet", "no"] == [event["safe_to_refund"] for event in told_of["no, open"]]


def what_is_told_is_proven_or_has_a_date_or_a_person(outcomes: Outcomes) -> None:
    told = [event for events in outcomes.told.values() for event in events]

    assert {(True, False, False), (False, True, False), (False, False, True)} == {
        (
            event["verdict"] in {"cancelled", "not_cancelled"},
            event["known_by"] is not None,
            event["needs_person"] is not None,
        )
        for event in told
    }
    assert [] == [event for event in told if event["as_of"] is None]


def a_held_connection_spends_no_attempt_until_it_is_put_right(outcomes: Outcomes) -> None:
    assert {"wrong token 0", "wrong token 1", "wrong token 2", "403 integration"} == set(outcomes.while_held)
    assert {(0, None, "credentials", None)} == {
        (each.attempts, each.verdict, each.hold_reason, each.ended_at) for each in outcomes.while_held.values()
    }


def a_record_keeps_the_whole_order_as_it_came(outcomes: Outcomes) -> None:
    snapshot = msgspec.json.decode(outcomes.timelines["yes"].cancellation.order_snapshot or "")

    assert ("yes", "cancelled", "123 Main St") == (
        snapshot["id"],
        snapshot["status"],
        snapshot["ship_to_address"]["address1"],
    )
    assert "[]" == outcomes.timelines["yes"].cancellation.unused_fields


def every_record_has_the_id_that_any_producer_can_compute(outcomes: Outcomes) -> None:
    assert {case.name: record_id(case.name, case.connection) for case in CASES} == {
        name: timeline.cancellation.id for name, timeline in outcomes.timelines.items()
    }


PROMISES = (
    a_verdict_is_told_again_when_a_later_read_raises_it,
    what_is_told_is_proven_or_has_a_date_or_a_person,
    a_held_connection_spends_no_attempt_until_it_is_put_right,
    a_record_keeps_the_whole_order_as_it_came,
    every_record_has_the_id_that_any_producer_can_compute,
)
