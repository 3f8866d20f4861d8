"""Sentry: how a person is called, and that no secret gets into an event. What is worth a call, others know."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.logging import LoggingIntegration, ignore_logger
from sentry_sdk.scrubber import DEFAULT_DENYLIST, EventScrubber

from worker.inputs.traceparent import ids_of
from worker.telemetry.logs import MIN_SECRET_LENGTH, without_secrets
from worker.telemetry.sentry_limit import SentryLimit
from worker.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sentry_sdk.integrations import Integration

log = structlog.get_logger()
_limit = SentryLimit()
RELEASE = os.environ.get("SENTRY_RELEASE") or f"cancel-worker@{__version__}"

_NAMES_OF_SECRETS = [
    "x-trackstar-api-key",
    "x-trackstar-access-token",
    "access_token",
    "trackstar_api_key",
    "trackstar_access_token",
    "credential_keys",
    "encrypted_token",
    "redis_url",
    "database_url",
    "event_signing_secret",
    "sentry_dsn",
    "ssl_password",
]


def set_up_sentry(dsn: str, secrets: list[str], *, integrations: Sequence[Integration] = (), **options: Any) -> None:
    """Start Sentry so that no secret can reach it: no locals, no bodies, no trace headers to Trackstar.

    `data_collection` and `send_default_pii` stay unset: setting the first, even to nothing, turns the scrubber off.
    """
    if not dsn:
        return  # its integrations would wrap every thread, query and Redis command for nobody

    def clean(event: Any, _hint: Any) -> Any:
        return without_secrets(event, [value for value in secrets if len(value) >= MIN_SECRET_LENGTH])

    _limit.forget()
    sentry_sdk.init(
        dsn=dsn,
        release=RELEASE,  # the environment is SENTRY_ENVIRONMENT, which the library reads itself
        include_local_variables=False,  # headers and tokens live there
        trace_propagation_targets=[],  # release and environment are none of Trackstar's business
        max_request_body_size="never",
        event_scrubber=EventScrubber(denylist=[*DEFAULT_DENYLIST, *_NAMES_OF_SECRETS], recursive=True),
        before_send=clean,
        before_send_transaction=clean,
        before_breadcrumb=clean,
        integrations=[*integrations, LoggingIntegration(event_level=None)],
        auto_enabling_integrations=False,  # they would wrap every query and every Redis command
        **options,
    )
    ignore_logger("celery.worker.consumer")


def alert(event: str, **fields: Any) -> None:
    """Tell a person: in Sentry one issue per kind of event and connection, and one event a minute of each."""
    log.error(event, **fields)
    with _told(event, fields) as is_sent:
        if is_sent:
            sentry_sdk.capture_message(event, level="error")


def report_bug(event: str, **fields: Any) -> None:
    """Log the exception at hand and send it to Sentry: it is our own mistake."""
    log.error(event, exc_info=True, **fields)  # noqa: LOG014 - it is called from exception handlers
    with _told(event, fields, type(sys.exception()).__name__) as is_sent:
        if is_sent:
            sentry_sdk.capture_exception()


@contextmanager
def _told(event: str, fields: Mapping[str, Any], *more: str) -> Iterator[bool]:
    """Say whether this is sent, or left out because so much of its kind was; what is sent carries what helps."""
    connection_id = str(fields.get("connection_id"))
    left_out = _limit.take(" ".join((event, *more)), connection_id) if sentry_sdk.get_client().is_active() else None
    if left_out is None:
        yield False
        return
    with sentry_sdk.new_scope() as scope:
        scope.fingerprint = [event, *more, connection_id]
        for name, value in fields.items():
            scope.set_tag(name, str(value))
        for name, context in _contexts(fields, left_out):
            scope.set_context(name, context)
        yield True


def _contexts(fields: Mapping[str, Any], left_out: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if record_id := _first(fields, "id", "ids"):
        yield "cancellation", {"id": record_id, "show": f"cancel-worker show {record_id}"}
    if trace := _first(fields, "traceparent", "traceparents"):
        trace_id, span_id = ids_of(trace)
        yield "trace", {"trace_id": trace_id, "span_id": span_id}
    if left_out:
        yield "left out", {"of this kind since the last one that was sent": left_out}


def _first(fields: Mapping[str, Any], one: str, several: str) -> str | None:
    return fields.get(one) or next(iter(fields.get(several, ())), None)
