"""The series of one worker process: names, labels and buckets of what `/metrics` shows. A contract for who watches.

Knows numbers and bounded words; does not know who counts them, what a row is, or HTTP. No label ever holds an id of an
order, a token or a text from outside; the names of connections stand in `cancel_worker_connection_info` alone.
A producer's name is a label of one gauge: a person gives it, and there are at most a hundred.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.producer import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

Series = TypeVar("Series", Counter, Histogram)
Labels = tuple[str, ...]
Samples = dict[Labels, float]  # of one gauge: its values by its labels' values

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STALE_SECONDS = 60.0  # what was told of the ledger or of Redis longer ago is not shown: absent is true, old is not
OTHER = "other"

_HTTP_SECONDS = (*(value for value in Histogram.DEFAULT_BUCKETS if value != float("inf")), 30.0, 60.0)
_WAIT_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
_PROOF_SECONDS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)
_RECORD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Of each gauge its labels and what it says. Those of the ledger say the same on every worker: take `max`, not `sum`.
GAUGES: dict[str, tuple[Labels, str]] = {
    "cancel_worker_ready": ((), "1 where /readyz of this worker answers 200, else 0."),
    "cancel_worker_slots": (("use",), "Request threads of this worker: used (a claim has one) or free."),
    "cancel_worker_build_info": (
        ("version", "revision", "schema"),
        "1; which release and commit run, and the schema that they know.",
    ),
    "cancel_worker_backlog": (
        ("state",),
        "Cancellations that have not ended: pending (also where held), queued, in_flight or waiting; up to 100000.",
    ),
    "cancel_worker_oldest_due_age_seconds": (
        ("priority",),
        "For how long the oldest cancellation that was never sent and may be sent now has waited; 0 where none waits.",
    ),
    "cancel_worker_unproven": (("verdict",), "Ended cancellations that wait for a crawl to prove them, up to 20000."),
    "cancel_worker_unproven_oldest_age_seconds": (("verdict",), "Since when the oldest of them has waited."),
    "cancel_worker_needs_person": (("why",), "Ended cancellations that no crawl settles: a person must."),
    "cancel_worker_connections_held": (("reason",), "Connections that are set aside."),
    "cancel_worker_permits_allowed_per_second": (("kind",), "Requests that all open connections together may send."),
    "cancel_worker_dead_letters": (("reason",), "Dead letters that nobody has sent again, up to 10000."),
    "cancel_worker_outbox_lag_seconds": ((), "Age of the oldest event that is not on the stream; 0 where none waits."),
    "cancel_worker_webhook_consecutive_failures": (
        (),
        "The most consecutive failures of one endpoint; at 10 it is paused, and counts until it is resumed.",
    ),
    "cancel_worker_inbox_lag": ((), "Entries of all inboxes that no worker has read (XINFO GROUPS)."),
    "cancel_worker_producer_inbox_entries": (
        ("producer",),
        "Entries on the inbox of each named producer that are not in the ledger yet.",
    ),
    "cancel_worker_connection_info": (
        ("connection_id", "name", "owner", "integration"),
        "1 for each connection, where METRICS_CONNECTIONS is true.",
    ),
}
DEAD_LETTER_REASONS = (
    *("not_json", "no_job_field", "invalid_job", "too_large", "kills_its_reader", "key_conflict", "refused_by_ledger"),
    *("not_an_object", "no_delivery_tag", "no_delivery_info", "no_task", "unknown_task", "no_id", "body_not_a_call"),
    *("wrong_arguments", "content_type", "no_body", "body_not_json", "body_not_base64"),
    *REASONS,
)
# How most of them end, so that the first of these is an increase for who watches.
_USUAL_ENDS = (
    ("succeeded", "cancelled", "response", "accepted"),
    ("succeeded", "accepted", "response", "accepted"),
    ("rejected", "unknown", "", "refused_by_warehouse"),
    ("rejected", "not_cancelled", "refusal", "order_not_found"),
    ("exhausted", "unknown", "", "horizon_passed"),
    ("expired", "not_cancelled", "never_sent", "send_by_passed"),
)
_RAISED = tuple(
    (known, verdict, "read_back") for known in ("accepted", "unknown") for verdict in ("cancelled", "not_cancelled")
)
_CONTRADICTED = (("accepted", "not_cancelled", "read_back"), ("cancelled", "not_cancelled", "read_back"))

_WORD = re.compile(r"[a-z]+(_[a-z]+)*")
_MAX_WORD = 32
_STATUSES = {str(status.value) for status in HTTPStatus}

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each one, which nobody asks for


@lru_cache(1024)
def status_label(status: int | None) -> str:
    """Return a status of HTTP as a label: empty where no answer came, `other` for a number that HTTP does not know."""
    if status is None:
        return ""
    return str(status) if str(status) in _STATUSES else OTHER


@lru_cache(1024)
def word_label(word: str | None) -> str:
    """Return one of our own words as a label: empty where there is none, `other` where it is no such word.

    Our reasons are words of letters, or `http_` and a status.
    """
    if not word:
        return ""
    status = word.removeprefix("http_")
    if status != word and status in _STATUSES:
        return word
    return word if len(word) <= _MAX_WORD and _WORD.fullmatch(word) else OTHER


def priority_label(priority: str | None) -> str:
    """Return a priority as a label."""
    return priority if priority in PRIORITY_RANK else OTHER


class Metrics:
    """The counters and histograms of one process, and the gauges that it was told. Safe to share between threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._told: dict[str, tuple[float, Samples]] = {}
        self._live: list[Callable[[], Mapping[str, Samples]]] = []
        self._children: dict[tuple[object, ...], Any] = {}
        self._make_counters()
        self._make_histograms()
        self._begin_at_zero()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"cancel_worker_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(name, says, labels, buckets=tuple(buckets), registry=self.registry)

    def _make_counters(self) -> None:
        change = ("verdict_from", "verdict_to", "evidence")
        self.accepted = self._counter("accepted_total", "Jobs taken into the ledger.", "source", "priority")
        self.ended = self._counter(
            "ended_total", "Cancellations ended by a worker.", "status", "verdict", "evidence", "reason"
        )
        self.raised = self._counter("verdicts_raised_total", "Verdicts that a read proved after the end.", *change)
        self.contradictions = self._counter("contradictions_total", "A yes after which the goods left.", *change)
        self.permits_used = self._counter("permits_used_total", "Send slots used.", "kind")
        self.rate_limited = self._counter("rate_limited_total", "Answers 429.")
        self.holds = self._counter("holds_total", "Holds of connections that workers began.", "reason")
        self.rescued = self._counter("rescued_total", "Claims of lost workers that were decided.")
        self.interrupted = self._counter("interrupted_total", "Claims given back with nothing sent.")
        self.send_by_missed = self._counter("send_by_missed_total", "Cancellations that expired at their send_by.")
        self.wont_make_it = self._counter("wont_make_it_total", "Warnings that a send_by comes before its turn.")
        self.dead_letters = self._counter("dead_letters_total", "Messages that could not be read.", "reason")

    def _make_histograms(self) -> None:
        self._duration = self._histogram(
            "http_client_request_duration_seconds",
            "Requests to Trackstar, to the last byte of the answer.",
            _HTTP_SECONDS,
            *("http_request_method", "http_response_status_code", "error_type", "url_template", "server_address"),
        )
        wait, size = "cancel_worker_schedule_to_start_seconds", "cancel_worker_claim_batch_size"
        self.start = self._histogram(wait, "From taken in to its first request.", _WAIT_SECONDS, "priority")
        self.end_to_end = self._histogram(
            "cancel_worker_end_to_end_seconds", "From requested to ended.", _WAIT_SECONDS[2:], "priority", "status"
        )
        self.proof = self._histogram(
            "cancel_worker_time_to_proof_seconds", "From ended or in doubt to proven.", _PROOF_SECONDS, "evidence"
        )
        self.claim_batch = self._histogram(size, "Claims handed out at once.", _BATCH_SIZES)
        self.record_batch = self._histogram(
            "cancel_worker_record_batch_seconds", "One transaction of results.", _RECORD_SECONDS
        )
        self._delivery = self._histogram(
            "cancel_worker_webhook_delivery_seconds",
            "Tries of webhooks, to the answer.",
            _HTTP_SECONDS[:-1],
            "http_response_status_code",
        )

    def _begin_at_zero(self) -> None:
        """Make the series whose labels are known: a first increase is seen only from a zero."""
        for priority in PRIORITY_RANK:
            self.start.labels(priority)
            self.end_to_end.labels(priority, "succeeded")
            for source in ("inbox", "celery"):
                self.accepted.labels(source, priority)
        known = [(self.ended, _USUAL_ENDS), (self.raised, _RAISED), (self.contradictions, _CONTRADICTED)]
        for counter, labels in known:
            for each in labels:
                counter.labels(*each)
        for reason in ("credentials", "outage", "rate_limited", "trackstar_outage"):
            self.holds.labels(reason)
        for reason in DEAD_LETTER_REASONS:
            self.dead_letters.labels(reason)
        for kind in ("write", "read"):
            self.permits_used.labels(kind)
        for evidence in ("read_back", "fresh_read_back"):
            self.proof.labels(evidence)
        self._delivery.labels("200")

    def of(self, series: Series, *labels: str) -> Series:
        """Return a series by its labels' values, as `labels` does, in a quarter of its time."""
        key = (series, *labels)
        child: Series = self._children.get(key) or self._children.setdefault(key, series.labels(*labels))
        return child

    def request(self, server: str, method: str, template: str, status: int | None, error: str, seconds: float) -> None:
        """Count one request to Trackstar. `error` is why no answer came, as one of our words, or empty."""
        code = status_label(status)
        failed = status is not None and status >= HTTPStatus.BAD_REQUEST
        key = (method, code, error or (code if failed else ""), template, server)
        self.of(self._duration, *key).observe(seconds)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.rate_limited.inc()

    def webhook(self, status: int | None, seconds: float) -> None:
        """Count one try of a webhook."""
        self.of(self._delivery, status_label(status)).observe(seconds)

    def slots_used(self, kind: str, count: int = 1) -> None:
        """Count send slots that are used; `kind` is write or read."""
        self.of(self.permits_used, kind).inc(count)

    def tell(self, gauges: Mapping[str, Samples]) -> None:
        """Show these values of gauges until they are told anew, or for STALE_SECONDS."""
        now = time.monotonic()
        self._told |= {name: (now, samples) for name, samples in gauges.items()}

    def watch(self, look: Callable[[], Mapping[str, Samples]]) -> None:
        """Show also what this returns whenever `/metrics` is asked for; it may wait for nothing."""
        self._live.append(look)

    def render(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, as the registry asks for them."""
        now = time.monotonic()
        values = {name: samples for name, (at, samples) in list(self._told.items()) if now - at <= STALE_SECONDS}
        for look in self._live:
            values |= look()
        for name, (labels, says) in GAUGES.items():
            if name not in values:
                continue
            family = GaugeMetricFamily(name, says, labels=labels)
            for label_values, value in values[name].items():
                family.add_metric(label_values, value)
            yield family
