"""Logs and Sentry: one structured line per attempt, and an alert only for what a person must act on.

Knows what may be said: ids, statuses, reasons. Never a token, a header, a document or an error's text from outside.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.logging import LoggingIntegration, ignore_logger
from sentry_sdk.scrubber import DEFAULT_DENYLIST, EventScrubber

from worker.cancellation.lifecycle import Status
from worker.cancellation.outcome import ALARMING_REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.ledger.claims import Record, Recorded

log = structlog.get_logger()

_NAMES_OF_SECRETS = [
    "x-trackstar-api-key",
    "x-trackstar-access-token",
    "access_token",
    "trackstar_api_key",
    "trackstar_access_token",
    "credential_keys",
    "sealed_token",
]
REPLACEMENT = "[secret]"
SHORTEST_SECRET = 6  # a shorter value would stand inside ordinary words, and no real key is that short


def set_up_logs(secrets: Iterable[str] = (), *, level: int = logging.INFO) -> None:
    """Send every log line, also of libraries, through structlog to stderr: JSON, or colours on a terminal."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _replacer(secrets),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _replacer(secrets), renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # These tell of every message and every request; our own line per attempt says more.
    for noisy in ("celery.worker.strategy", "celery.app.trace", "urllib3", "kombu", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _replacer(secrets: Iterable[str]) -> Callable[[Any, str, Any], Any]:
    known = [value for value in secrets if len(value) >= SHORTEST_SECRET]

    def replace(_logger: Any, _method: str, event: Any) -> Any:
        return without_secrets(event, known) if known else event

    return replace


def without_secrets(value: Any, known: list[str]) -> Any:
    """Replace every known secret value wherever it stands in a nested value."""
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, REPLACEMENT)
        return value
    if isinstance(value, dict):
        return {without_secrets(k, known): without_secrets(v, known) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(item, known) for item in value) if type(value) in {list, tuple} else value
    return value


def set_up_sentry(dsn: str, secrets: list[str], **options: Any) -> None:
    """Start Sentry so that no secret can reach it: no locals, no bodies, no trace headers to Trackstar.

    `data_collection` and `send_default_pii` stay unset: setting the first, even to nothing, turns the scrubber off.
    """

    def clean(event: Any, _hint: Any) -> Any:
        return without_secrets(event, [value for value in secrets if len(value) >= SHORTEST_SECRET])

    sentry_sdk.init(
        dsn=dsn or None,
        include_local_variables=False,  # headers and tokens live there
        trace_propagation_targets=[],  # release and environment are none of Trackstar's business
        max_request_body_size="never",
        event_scrubber=EventScrubber(denylist=[*DEFAULT_DENYLIST, *_NAMES_OF_SECRETS], recursive=True),
        before_send=clean,
        before_send_transaction=clean,
        before_breadcrumb=clean,
        integrations=[CeleryIntegration(propagate_traces=False), LoggingIntegration(event_level=None)],
        **options,
    )
    ignore_logger("celery.worker.consumer")


def tell(records: list[Record], recorded: Recorded) -> None:
    """Log one line per attempt, and alert a person where only a person can help."""
    for record in records:
        _log_attempts(record, applied=record.claim.fence.id in recorded.applied)
        if record.claim.fence.id in recorded.applied:
            _alert(record)
    for connection_id in sorted(recorded.held):
        alert("connection.held", connection_id=connection_id, reason="credentials")
    for connection_id in sorted(recorded.resumed):
        log.info("connection.resumed", connection_id=connection_id)


def _log_attempts(record: Record, *, applied: bool) -> None:
    claim, move, found = record.claim, record.move, record.confirmation
    for row in record.attempts:
        log.info(
            "cancellation.attempted",
            id=claim.fence.id,
            connection_id=claim.connection_id,
            order_id=claim.order_id,
            kind=row.kind,
            attempt=claim.fence.claim,
            http_status=row.status,
            origin=row.origin,
            reason=row.reason,
            duration_ms=row.duration_ms,
            request_id=row.request_id,
            status=move.status if move else None,
            verdict=move.verdict if move else (found.verdict if found else None),
            run_at=move.run_at.isoformat() if move and move.run_at else None,
            applied=applied,
        )


def _alert(record: Record) -> None:
    claim, move = record.claim, record.move
    who = {"id": claim.fence.id, "connection_id": claim.connection_id, "order_id": claim.order_id}
    if move is not None and move.status is Status.EXHAUSTED:
        alert("cancellation.exhausted", reason=move.reason, verdict=move.verdict, **who)
    if record.confirmation is not None and record.confirmation.contradicted:
        alert("cancellation.contradicted", **who)
    for row in record.attempts:
        if row.reason in ALARMING_REASONS:
            alert(f"cancellation.{row.reason}", **who)


def alert(event: str, **fields: Any) -> None:
    """Tell a person, once per kind of event and connection: Sentry groups by that fingerprint."""
    log.error(event, **fields)
    with sentry_sdk.new_scope() as scope:
        scope.fingerprint = [event, str(fields.get("connection_id"))]
        for name, value in fields.items():
            scope.set_tag(name, str(value))
        sentry_sdk.capture_message(event, level="error")
