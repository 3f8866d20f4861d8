"""Nothing secret reaches Sentry, and only what a person must act on does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sentry_sdk
from sentry_sdk.transport import Transport

from worker.cancellation.lifecycle import Confirmation, Evidence, Move, State, Status, Verdict
from worker.ledger.claims import Claim
from worker.ledger.moving import Fence
from worker.ledger.recording import AttemptRow, Record, Recorded
from worker.observability import report_bug, set_up_sentry, without_secrets
from worker.report import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "the-access-token-1"


class Captured(Transport):
    """Keeps what would have been sent."""

    events: list[dict[str, Any]]

    def capture_envelope(self, envelope: Any) -> None:
        type(self).events += [item.payload.json for item in envelope.items if item.payload.json]


@pytest.fixture
def sentry() -> Iterator[type[Captured]]:
    Captured.events = []
    set_up_sentry("http://public@127.0.0.1/1", [SECRET], transport=Captured)
    yield Captured
    sentry_sdk.get_client().close()
    sentry_sdk.init()


def _record(move: Move | None = None, confirmation: Confirmation | None = None, reason: str = "http_500") -> Record:
    claim = Claim(
        fence=Fence("8d2e4c0e-0000-5000-8000-000000000000", "me", 1),
        connection_id="shop-1",
        order_id="1001",
        generation=1,
        state=State(attempts=0, first_sent_at=NOW),
        claimed_at=NOW,
        sealed_token="sealed",
        hold_reason=None,
    )
    row = AttemptRow(kind="cancel", started_at=NOW, reason=reason)
    return Record(claim=claim, attempts=(row,), move=move, confirmation=confirmation)


def _told(record: Record, *, held: frozenset[str] = frozenset()) -> None:
    tell([record], Recorded(frozenset({record.claim.fence.id}), held, frozenset()))


def test_a_bug_is_sent_without_locals_and_without_any_secret_value(sentry: type[Captured]) -> None:
    headers = {"x-trackstar-access-token": SECRET, "nested": {"api_key": SECRET}}
    try:
        raise ValueError(f"a text that holds {SECRET} and {len(headers)} headers")
    except ValueError:
        report_bug("cancellation.attempt_failed")

    assert len(sentry.events) == 1
    assert SECRET not in json.dumps(sentry.events)
    assert "vars" not in json.dumps(sentry.events)


@pytest.mark.parametrize(
    ("record", "held", "message"),
    [
        pytest.param(
            _record(Move(status=Status.EXHAUSTED, attempts=9, reason="http_500", verdict=Verdict.UNKNOWN)),
            frozenset(),
            "cancellation.exhausted",
            id="exhausted",
        ),
        pytest.param(
            _record(
                confirmation=Confirmation(
                    verdict=Verdict.NOT_CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None, contradicted=True
                )
            ),
            frozenset(),
            "cancellation.contradicted",
            id="contradicted",
        ),
        pytest.param(
            _record(Move(status=Status.PENDING, attempts=0, reason="unauthorized", hold_connection=True)),
            frozenset({"shop-1"}),
            "connection.held",
            id="held",
        ),
        pytest.param(
            _record(Move(status=Status.REJECTED, attempts=1, reason="key_reused"), reason="key_reused"),
            frozenset(),
            "cancellation.key_reused",
            id="our own mistake",
        ),
    ],
)
def test_a_person_is_told_once_what_only_a_person_can_help(
    sentry: type[Captured], record: Record, held: frozenset[str], message: str
) -> None:
    _told(record, held=held)

    assert [message] == [event["message"] for event in sentry.events]


@pytest.mark.parametrize(
    "move",
    [
        Move(status=Status.SUCCEEDED, attempts=1, reason="accepted", verdict=Verdict.CANCELLED),
        Move(status=Status.WAITING, attempts=1, reason="http_503", verdict=Verdict.UNKNOWN, run_at=NOW),
        Move(status=Status.REJECTED, attempts=1, reason="order_not_found", verdict=Verdict.NOT_CANCELLED),
    ],
    ids=lambda move: move.status,
)
def test_an_ordinary_end_alerts_nobody(sentry: type[Captured], move: Move) -> None:
    _told(_record(move))

    assert [] == sentry.events


def test_a_known_secret_is_replaced_wherever_it_stands() -> None:
    event = {SECRET: [f"x{SECRET}y", (SECRET, 1)], "deep": {"er": {"key": SECRET}}, "number": 3}

    assert {
        "[secret]": ["x[secret]y", ("[secret]", 1)],
        "deep": {"er": {"key": "[secret]"}},
        "number": 3,
    } == without_secrets(event, [SECRET])
