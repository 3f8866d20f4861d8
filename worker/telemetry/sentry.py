"""Sentry: how a person is called, and that no secret gets into an event. What is worth a call, others know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.logging import LoggingIntegration, ignore_logger
from sentry_sdk.scrubber import DEFAULT_DENYLIST, EventScrubber

from worker.telemetry.logs import MIN_SECRET_LENGTH, without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentry_sdk.integrations import Integration

log = structlog.get_logger()

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

    sentry_sdk.init(
        dsn=dsn,
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
    """Tell a person, once per kind of event and connection: Sentry groups by that fingerprint."""
    log.error(event, **fields)
    with sentry_sdk.new_scope() as scope:
        scope.fingerprint = [event, str(fields.get("connection_id"))]
        for name, value in fields.items():
            scope.set_tag(name, str(value))
        sentry_sdk.capture_message(event, level="error")


def report_bug(event: str, **fields: Any) -> None:
    """Log the exception at hand and send it to Sentry: it is our own mistake."""
    log.error(event, exc_info=True, **fields)  # noqa: LOG014 - it is called from exception handlers
    sentry_sdk.capture_exception()
