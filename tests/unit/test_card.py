"""The support card says whether it is safe to refund, why, and what a person can do now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.cancellation.status import Evidence, Status
from worker.cli import card
from worker.ledger.queries import Timeline
from worker.ledger.record import Cancellation

NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)


def cancel(**facts: Any) -> Cancellation:
    nothing = dict.fromkeys(Cancellation.__struct_fields__)
    basic: dict[str, Any] = {
        "id": "some-id",
        "connection_id": "shop-1",
        "order_id": "o-1",
        "idempotency_key": "key",
        "priority": "normal",
        "status": "pending",
        "attempts": 0,
        "generation": 1,
        "requested_at": NOON,
        "received_at": NOON,
    }
    return Cancellation(**{**nothing, **basic, **facts})


def ended(status: str, verdict: str, evidence: str | None, **facts: Any) -> Cancellation:
    return cancel(status=status, verdict=verdict, evidence=evidence, ended_at=NOON, as_of=NOON, **facts)


REPLAY = "To send it again, when what stood against it is mended: `cancel-worker replay some-id --reason ...`."
WITHDRAW = "To take it back before it is sent: `cancel-worker withdraw some-id`."
SOONER = "To have it sent sooner: `cancel-worker change some-id --priority urgent`."


@pytest.mark.parametrize(
    ("sentences", "row"),
    [
        ([WITHDRAW, SOONER], cancel()),
        ([SOONER.replace("urgent`", "urgent` or `--now`")], cancel(status="waiting", verdict="unknown", run_at=NOON)),
        ([], cancel(status="in_flight")),
        ([], ended("succeeded", "cancelled", "response")),
        ([REPLAY], ended("rejected", "not_cancelled", "refusal")),
        ([REPLAY], ended("withdrawn", "not_cancelled", "never_sent")),
        (
            ["The goods have left: agree on a return with the customer."],
            ended("rejected", "not_cancelled", "read_back"),
        ),
        (
            ["Wait until it is known; do not refund before."],
            ended("exhausted", "unknown", None, known_by=NOON + timedelta(hours=1)),
        ),
    ],
)
def test_a_person_is_told_what_can_be_done_now(sentences: list[str], row: Cancellation) -> None:
    assert sentences == card.what_to_do(row)


def test_of_a_held_connection_the_remedy_comes_first() -> None:
    said = card.what_to_do(cancel(hold_reason="credentials"))

    assert "`cancel-worker connections rotate shop-1`" in said[0]
    assert [WITHDRAW] == said[1:]


def test_what_needs_a_person_says_how_it_is_settled() -> None:
    row = ended("succeeded", "accepted", "response", needs_person="accepted_but_open")

    assert "not yet: needs a person, for the warehouse accepted the cancel" in card.because(row)
    assert "`cancel-worker resolve some-id cancelled`" in card.what_to_do(row)[0]


@pytest.mark.parametrize(
    ("answer", "row"),
    [
        ("yes, as of 2030-01-02 12:00:00 UTC. The order is cancelled: the answer to our request shows it cancelled.",
         ended("succeeded", "cancelled", "response")),
        ("no, as of 2030-01-02 12:00:00 UTC. The order was not cancelled: the order was read and goods have left.",
         ended("rejected", "not_cancelled", "read_back")),
        ("no, as of 2030-01-02 12:00:00 UTC. The order was not cancelled: no request was ever sent for it.",
         ended("expired", "not_cancelled", "never_sent")),
        ("not yet, known by 2030-01-02 12:00:00 UTC.", cancel(known_by=NOON)),
        ("not yet, known by 2020-01-01 00:00:00 UTC. That time has passed: see `cancel-worker doctor`.",
         cancel(known_by=datetime(2020, 1, 1, tzinfo=UTC))),
    ],
)  # fmt: skip
def test_the_answer_has_its_time_and_its_proof(answer: str, row: Cancellation) -> None:
    assert answer == card.because(row)


def test_what_proves_it_in_the_words_of_a_later_release_is_left_out() -> None:
    said = card.because(ended("succeeded", "cancelled", "a_later_word"))

    assert "yes, as of 2030-01-02 12:00:00 UTC. The order is cancelled." == said


def test_what_waits_for_a_crawl_may_be_tried_before_its_time() -> None:
    row = cancel(status="waiting", verdict=None, run_at=NOON, outcome_reason="order_not_found_yet")

    assert "It is tried again at 2030-01-02 12:00:00 UTC, or when a crawl has ended;" in card._in_words(row)


def test_every_evidence_and_every_end_has_words() -> None:
    assert set(card._PROOF) == set(Evidence)
    assert set(card._ENDS) == {Status(each) for each in ("succeeded", "rejected", "exhausted", "expired", "withdrawn")}


def test_each_request_is_told_in_plain_words_with_what_it_was_answered(capsys: pytest.CaptureFixture[str]) -> None:
    tried = {
        "kind": "cancel",
        "generation": 2,
        "started_at": NOON,
        "reason": "refused_by_warehouse",
        "status": 422,
        "error": "already packed",
        "request_id": "req-1",
    }
    row = ended(
        "rejected", "not_cancelled", "read_back",
        outcome_reason="refused_by_warehouse", outcome_message="already packed", order_status="shipped",
        requested_by="ann", reason="changed her mind", send_by=NOON,
    )  # fmt: skip
    card.print_card(Timeline(cancellation=row, attempts=[tried], events=[], acts=[]), None)
    said = " ".join(capsys.readouterr().out.split())

    assert "requested by ann: changed her mind (send by 2030-01-02 12:00:00 UTC)" in said
    assert (
        "cancel sent (generation 2): the warehouse refused the cancel. Details: already packed. "
        "(HTTP 422, refused_by_warehouse, request req-1)"
    ) in said
    assert (
        "The cancel was refused for good: the warehouse refused the cancel. The order's status in the answer: shipped."
        in said
    )
    assert "Details: already packed" in said
