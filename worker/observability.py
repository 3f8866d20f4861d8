"""Logs and Sentry: how a line is written, how a person is called, and that no secret gets into either.

Does not know what is worth saying; that is `report`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import sentry_sdk
import structlog
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.logging import LoggingIntegration, ignore_logger
from sentry_sdk.scrubber import DEFAULT_DENYLIST, EventScrubber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
    """Send every log line, also of libraries, to stderr: one JSON object each, or colours on a terminal."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _replacer(secrets),
    ]
    on_terminal = sys.stderr.isatty()
    # Ours go straight to the stream: on the way through `logging` a line takes ten times as long, and each attempt
    # writes one.
    structlog.configure(
        processors=[*shared, structlog.dev.ConsoleRenderer() if on_terminal else _as_json],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
        if on_terminal
        else structlog.BytesLoggerFactory(sys.stderr.buffer),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _replacer(secrets),
                structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # These tell of every message and every request; our own line per attempt says more.
    for noisy in ("celery.worker.strategy", "celery.app.trace", "urllib3", "kombu", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _as_json(_logger: Any, _method: str, event: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)


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
    if not dsn:
        return  # its integrations would wrap every thread, query and Redis command for nobody

    def clean(event: Any, _hint: Any) -> Any:
        return without_secrets(event, [value for value in secrets if len(value) >= SHORTEST_SECRET])

    sentry_sdk.init(
        dsn=dsn,
        include_local_variables=False,  # headers and tokens live there
        trace_propagation_targets=[],  # release and environment are none of Trackstar's business
        max_request_body_size="never",
        event_scrubber=EventScrubber(denylist=[*DEFAULT_DENYLIST, *_NAMES_OF_SECRETS], recursive=True),
        before_send=clean,
        before_send_transaction=clean,
        before_breadcrumb=clean,
        integrations=[CeleryIntegration(propagate_traces=False), LoggingIntegration(event_level=None)],
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
