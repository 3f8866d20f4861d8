"""The series of a worker: names and labels that are a contract, true counts, and no word from outside in a label."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from unit.fakes import NOW, confirm_claim, send_claim

import worker.cancellation.celery_message
import worker.cancellation.request
import worker.inputs.entries
from worker.cancellation import producer
from worker.cancellation.lifecycle import State, Transition
from worker.cancellation.proof import Confirmation
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.cli.reasons import IN_WORDS
from worker.inputs.entries import REFUSALS
from worker.ledger.attempts import WORKER_LOST, AttemptRow
from worker.ledger.claims import Lease
from worker.ledger.deadlines import Lapsed
from worker.ledger.results import AttemptResult, CommitSummary, ConfirmResult
from worker.runtime import acceptance
from worker.runtime.counting import count_expired, count_recorded
from worker.telemetry.metrics import DEAD_LETTER_REASONS, GAUGES, Metrics, status_label, word_label

if TYPE_CHECKING:
    from typing import Any

    from worker.ledger.results import Result

HOSTILE = 'x"} 1\ncancel_worker_forged_total 1\n# \\'


def series(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return all samples as Prometheus reads them: by name, then by the labels' values, sorted by labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            values = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def moved(before: dict[str, Any], metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what is more than before, but for the buckets of histograms and the process."""
    return {
        name: changed
        for name, samples in series(metrics).items()
        if not name.endswith(("_bucket", "_sum")) and not name.startswith("process_")
        if (changed := {labels: value for labels, value in samples.items() if value > before[name].get(labels, 0.0)})
    }


def recorded(*results: Result, applied: bool = True, **summary: Any) -> dict[str, dict[tuple[str, ...], float]]:
    metrics = Metrics()
    before = series(metrics)
    ids = frozenset(result.claim.id for result in results) if applied else frozenset[str]()
    given = {"held": frozenset(), "resumed": frozenset(), **summary}
    count_recorded(metrics, results, CommitSummary(applied=ids, **given))
    return moved(before, metrics)


def attempted(claim: Any, transition: Transition, reason: str = "accepted") -> AttemptResult:
    row = AttemptRow(kind="cancel", started_at=NOW + timedelta(seconds=3), reason=reason, status=200)
    return AttemptResult(claim=claim, attempts=(row,), transition=transition)


def ended(**changes: Any) -> Transition:
    facts: dict[str, Any] = {
        "status": Status.SUCCEEDED,
        "attempts": 1,
        "reason": "accepted",
        "verdict": Verdict.CANCELLED,
        "evidence": Evidence.RESPONSE,
        "as_of": NOW + timedelta(seconds=8),
    }
    return Transition(**facts | changes)


# -- labels


@pytest.mark.parametrize("reason", IN_WORDS)
def test_every_reason_of_ours_is_a_label_as_it_is(reason: str) -> None:
    assert reason == word_label(reason)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("", None),
        ("", ""),
        ("http_503", "http_503"),
        ("other", "http_799"),
        ("other", "http_00503"),
        ("other", "order 4711"),
        ("other", "o" * 33),
        ("other", "Upper"),
        ("other", HOSTILE),
        ("other", "accepted\n"),
    ],
)
def test_what_is_no_word_of_ours_is_one_label(label: str, word: str | None) -> None:
    assert label == word_label(word)


@pytest.mark.parametrize(("label", "status"), [("", None), ("200", 200), ("503", 503), ("other", 799), ("other", 0)])
def test_a_status_that_http_does_not_know_is_one_label(label: str, status: int | None) -> None:
    assert label == status_label(status)


def test_whatever_a_server_answers_there_are_no_more_series_than_statuses() -> None:
    metrics = Metrics()
    for status in range(1000):
        metrics.request("api", "PUT", "/wms/orders/{order_id}/cancel", status, "", 0.1)

    assert 100 > len(series(metrics)["http_client_request_duration_seconds_count"])


# -- names


def test_every_name_has_its_unit_and_begins_as_ours_or_as_opentelemetry_says() -> None:
    text = Metrics().render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    ours = {name: kind for name, kind in kinds.items() if not name.startswith("process_")}

    assert {"http_client_request_duration_seconds"} == {name for name in ours if not name.startswith("cancel_worker_")}
    assert {"counter"} == {kind for name, kind in ours.items() if name.endswith("_total")}
    assert {"cancel_worker_claim_batch_size"} == {
        name for name, kind in ours.items() if kind == "histogram" and not name.endswith("_seconds")
    }
    assert not [name for name in kinds if name.endswith("_created")]


def test_series_whose_labels_are_known_begin_at_zero() -> None:
    found = series(Metrics())

    assert 0.0 == found["cancel_worker_contradictions_total"]["read_back", "accepted", "not_cancelled"]
    assert 0.0 == found["cancel_worker_ended_total"]["response", "accepted", "succeeded", "cancelled"]
    assert {0.0} == {
        value
        for name, samples in found.items()
        if name.startswith("cancel_worker_") and name.endswith("_total")
        for value in samples.values()
    }


def test_the_same_gauge_is_never_shown_twice_and_each_says_what_it_is() -> None:
    metrics = Metrics()
    metrics.tell({name: {tuple("x" for _ in labels): 1.0} for name, (labels, _) in GAUGES.items()})
    families = re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE)

    assert sorted(set(families)) == sorted(families)
    assert set(GAUGES) <= set(families)
    assert all(says.endswith(".") or "(XINFO" in says for _, says in GAUGES.values())


def test_a_hostile_name_of_a_connection_stays_one_value() -> None:
    metrics = Metrics()
    metrics.tell({"cancel_worker_connection_info": {("id", HOSTILE, "", ""): 1.0}})
    found = series(metrics)

    assert {("id", "", HOSTILE, ""): 1.0} == found["cancel_worker_connection_info"]
    assert "cancel_worker_forged_total" not in found


# -- what moves


def test_a_first_attempt_that_ends_counts_its_wait_its_length_and_its_outcome() -> None:
    state = State(attempts=0, first_sent_at=NOW, received_at=NOW)
    claim = send_claim(1, state=state, priority="urgent", requested_at=NOW)

    assert {
        "cancel_worker_ended_total": {("response", "accepted", "succeeded", "cancelled"): 1.0},
        "cancel_worker_schedule_to_start_seconds_count": {("urgent",): 1.0},
        "cancel_worker_end_to_end_seconds_count": {("urgent", "succeeded"): 1.0},
    } == recorded(attempted(claim, ended()))


def test_a_first_request_counts_its_wait_also_after_a_claim_that_was_given_back() -> None:
    lease = Lease("00000000-0000-5000-8000-000000000001", "me", 2)
    received = NOW - timedelta(seconds=20)
    claim = send_claim(1, state=State(attempts=0, first_sent_at=NOW, received_at=received), lease=lease)

    assert "cancel_worker_schedule_to_start_seconds_count" in recorded(attempted(claim, ended()))


def test_a_later_claim_counts_no_wait_for_its_first_request() -> None:
    claim = send_claim(
        1,
        state=State(attempts=1, first_sent_at=NOW, received_at=NOW, verdict=Verdict.UNKNOWN),
        lease=Lease("00000000-0000-5000-8000-000000000001", "me", 2),
    )

    found = recorded(attempted(claim, ended(evidence=Evidence.READ_BACK)))

    assert {("read_back",): 1.0} == found["cancel_worker_time_to_proof_seconds_count"]
    assert "cancel_worker_schedule_to_start_seconds_count" not in found


def test_a_result_that_was_no_longer_ours_counts_for_nothing() -> None:
    assert {} == recorded(attempted(send_claim(1), ended()), applied=False)


def test_a_wait_is_no_end() -> None:
    waits = ended(status=Status.WAITING, verdict=None, evidence=None, as_of=None, run_at=NOW)

    assert "cancel_worker_ended_total" not in recorded(attempted(send_claim(1), waits))


def test_a_rescue_and_a_claim_given_back_are_counted() -> None:
    waits = ended(status=Status.WAITING, verdict=None, evidence=None, as_of=None, reason="started_too_late")
    given_back = AttemptResult(claim=send_claim(2), attempts=(), transition=waits)

    assert {"cancel_worker_rescued_total": {(): 1.0}, "cancel_worker_interrupted_total": {(): 1.0}} == recorded(
        attempted(send_claim(1), waits, WORKER_LOST), given_back
    )


@pytest.mark.parametrize(
    ("name", "contradicted", "verdict"),
    [
        ("cancel_worker_verdicts_raised_total", False, Verdict.CANCELLED),
        ("cancel_worker_contradictions_total", True, Verdict.NOT_CANCELLED),
    ],
)
def test_a_verdict_that_a_read_changes_is_raised_or_contradicted(
    name: str, contradicted: bool, verdict: Verdict
) -> None:
    found = Confirmation(verdict=verdict, evidence=Evidence.READ_BACK, as_of=NOW, contradicted=contradicted)

    assert {
        name: {("read_back", "accepted", verdict): 1.0},
        "cancel_worker_time_to_proof_seconds_count": {("read_back",): 1.0},
    } == recorded(ConfirmResult(claim=confirm_claim(1), attempts=(), confirmation=found))


def test_a_read_that_changes_nothing_moves_nothing() -> None:
    same = Confirmation(verdict=Verdict.ACCEPTED, evidence=Evidence.RESPONSE)

    assert {} == recorded(ConfirmResult(claim=confirm_claim(1), attempts=(), confirmation=same))


def test_holds_that_a_batch_begins_are_counted_by_their_reason() -> None:
    assert {"cancel_worker_holds_total": {("credentials",): 2.0, ("rate_limited",): 1.0}} == recorded(
        held=frozenset({"a", "b"}), paused=frozenset({"c"})
    )


def test_what_expires_unsent_has_missed_its_end() -> None:
    metrics = Metrics()
    before = series(metrics)
    row = Lapsed(
        "id", "shop", "o-1", None, State(attempts=0, first_sent_at=NOW), NOW, "bulk", NOW - timedelta(seconds=5)
    )
    expired = ended(
        status=Status.EXPIRED, verdict=Verdict.NOT_CANCELLED, evidence=Evidence.NEVER_SENT, reason="send_by_passed"
    )
    count_expired(metrics, [(row, expired)])

    assert {
        "cancel_worker_ended_total": {("never_sent", "send_by_passed", "expired", "not_cancelled"): 1.0},
        "cancel_worker_send_by_missed_total": {(): 1.0},
        "cancel_worker_end_to_end_seconds_count": {("bulk", "expired"): 1.0},
    } == moved(before, metrics)


def test_a_request_counts_by_its_template_and_a_429_once_more() -> None:
    metrics = Metrics()
    metrics.request("api", "GET", "/wms/orders/{order_id}", 429, "", 0.1)
    metrics.request("api", "GET", "/wms/orders/{order_id}", None, "read_timeout", 60.0)
    found = series(metrics)

    assert {
        ("429", "GET", "429", "api", "/wms/orders/{order_id}"): 1.0,
        ("read_timeout", "GET", "", "api", "/wms/orders/{order_id}"): 1.0,
    } == found["http_client_request_duration_seconds_count"]
    assert {(): 1.0} == found["cancel_worker_rate_limited_total"]


def test_every_reason_of_a_dead_letter_begins_at_zero_so_that_its_first_one_is_an_increase() -> None:
    places = (worker.cancellation.celery_message, worker.cancellation.request, worker.inputs.entries, acceptance)
    text = "\n".join(inspect.getsource(place) for place in places)
    calls = re.findall(r'(?:_refuse|_json|InvalidRequest|_dead_letter)\([^"\n]*"([a-z_0-9]+)"', text)
    named = {each for each in calls if each not in CancelRequest.__struct_fields__} | {*REFUSALS, *producer.REASONS}

    assert set(DEAD_LETTER_REASONS) == named
