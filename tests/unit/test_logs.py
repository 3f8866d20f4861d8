"""Nothing secret reaches Sentry, and only what a person must act on does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sentry_sdk
from sentry_sdk.transport import Transport
from structlog.testing import capture_logs

from worker.cancellation.lifecycle import State, Transition
from worker.cancellation.proof import Confirmation, Unproven
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger.attempts import AttemptRow
from worker.ledger.claims import ConfirmClaim, Lease, SendClaim
from worker.ledger.results import AttemptResult, CommitSummary, ConfirmResult
from worker.runtime.reporting import log_results
from worker.telemetry.logs import without_secrets
from worker.telemetry.sentry import report_bug, set_up_sentry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.results import Result

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "the-access-token-1"


class Captured(Transport):
    """Keeps what would have been sent."""

    events: list[dict[str, Any]]

    def capture_envelope(self, messages: Any) -> None:
        type(self).events += [item.payload.json for item in messages.items if item.payload.json]


@pytest.fixture
def sentry() -> Iterator[type[Captured]]:
    Captured.events = []
    set_up_sentry("http://public@127.0.0.1/1", [SECRET], transport=Captured)
    yield Captured
    sentry_sdk.get_client().close()
    sentry_sdk.init()


COMMON: dict[str, Any] = {
    "lease": Lease("8d2e4c0e-0000-5000-8000-000000000000", "me", 1),
    "connection_id": "shop-1",
    "order_id": "1001",
    "generation": 1,
    "claimed_at": NOW,
    "encrypted_token": "encrypted",
    "hold_reason": None,
}


def attempted(transition: Transition, reason: str = "http_500") -> AttemptResult:
    claim = SendClaim(**COMMON, state=State(attempts=0, first_sent_at=NOW))
    return AttemptResult(claim=claim, attempts=(_row("cancel", reason),), transition=transition)


def confirmed(confirmation: Confirmation) -> ConfirmResult:
    known = Unproven(verdict=Verdict.ACCEPTED, evidence=Evidence.RESPONSE, ended_at=NOW)
    claim = ConfirmClaim(**COMMON, known=known)
    return ConfirmResult(claim=claim, attempts=(_row("read", "read_open"),), confirmation=confirmation)


def _row(kind: Any, reason: str) -> AttemptRow:
    return AttemptRow(kind=kind, started_at=NOW, reason=reason)


def _tell(result: Result, *, held: frozenset[str] = frozenset(), applied: bool = True) -> None:
    log_results([result], CommitSummary(frozenset({result.claim.id} if applied else ()), held, frozenset()))


def test_a_bug_is_sent_without_locals_and_without_any_secret_value(sentry: type[Captured]) -> None:
    headers = {"x-trackstar-access-token": SECRET, "nested": {"api_key": SECRET}}
    try:
        raise ValueError(f"a text that holds {SECRET} and {len(headers)} headers")
    except ValueError:
        report_bug("cancellation.attempt_failed")

    assert 1 == len(sentry.events)
    assert SECRET not in json.dumps(sentry.events)
    assert "vars" not in json.dumps(sentry.events)


@pytest.mark.parametrize(
    ("result", "held", "message"),
    [
        pytest.param(
            attempted(Transition(status=Status.EXHAUSTED, attempts=9, reason="http_500", verdict=Verdict.UNKNOWN)),
            frozenset(),
            "cancellation.exhausted",
            id="exhausted",
        ),
        pytest.param(
            confirmed(
                Confirmation(
                    verdict=Verdict.NOT_CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None, contradicted=True
                )
            ),
            frozenset(),
            "cancellation.contradicted",
            id="contradicted",
        ),
        pytest.param(
            attempted(Transition(status=Status.PENDING, attempts=0, reason="unauthorized", hold_connection=True)),
            frozenset({"shop-1"}),
            "connection.held",
            id="held",
        ),
        pytest.param(
            attempted(Transition(status=Status.REJECTED, attempts=1, reason="key_reused"), reason="key_reused"),
            frozenset(),
            "cancellation.key_reused",
            id="our own mistake",
        ),
    ],
)
def test_a_person_is_told_once_what_only_a_person_can_help(
    sentry: type[Captured], result: Result, held: frozenset[str], message: str
) -> None:
    _tell(result, held=held)

    assert [message] == [event["message"] for event in sentry.events]


@pytest.mark.parametrize(
    "transition",
    [
        Transition(status=Status.SUCCEEDED, attempts=1, reason="accepted", verdict=Verdict.CANCELLED),
        Transition(status=Status.WAITING, attempts=1, reason="http_503", verdict=Verdict.UNKNOWN, run_at=NOW),
        Transition(status=Status.REJECTED, attempts=1, reason="order_not_found", verdict=Verdict.NOT_CANCELLED),
    ],
    ids=lambda transition: transition.status,
)
def test_an_ordinary_end_alerts_nobody(sentry: type[Captured], transition: Transition) -> None:
    _tell(attempted(transition))

    assert [] == sentry.events


def test_an_ordinary_read_back_alerts_nobody(sentry: type[Captured]) -> None:
    _tell(confirmed(Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None)))

    assert [] == sentry.events


def test_what_a_claim_decided_that_was_no_longer_ours_alerts_nobody_and_is_logged(sentry: type[Captured]) -> None:
    with capture_logs() as logs:
        _tell(attempted(Transition(status=Status.EXHAUSTED, attempts=9, reason="http_500")), applied=False)

    assert [] == sentry.events
    assert [("cancellation.attempted", False)] == [(line["event"], line["applied"]) for line in logs]


def test_a_known_secret_is_replaced_wherever_it_stands() -> None:
    event = {SECRET: [f"x{SECRET}y", (SECRET, 1)], "deep": {"er": {"key": SECRET}}, "number": 3}

    assert {
        "[secret]": ["x[secret]y", ("[secret]", 1)],
        "deep": {"er": {"key": "[secret]"}},
        "number": 3,
    } == without_secrets(event, [SECRET])
