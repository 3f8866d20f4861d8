"""Logs: how a line is written, and that no secret gets into one. What is worth saying, others know."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
import structlog

from worker.inputs.text import visible, visible_json, visible_lines
from worker.telemetry.log_stream import STANDARD_ERROR, LogStream, TextLogStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


REPLACEMENT = "[secret]"
MIN_SECRET_LENGTH = 6  # a shorter value would stand inside ordinary words, and no real key is that short


def set_up_logs(secrets: Iterable[str] = (), *, level: int = logging.INFO) -> None:
    """Send every log line, also of libraries, to stderr: one JSON object each, or colours on a terminal.

    From then on nothing that this process prints can block it or raise, whatever became of stdout and stderr.
    """
    on_terminal = bool(sys.__stderr__ and sys.__stderr__.isatty())
    stream = print_without_blocking()
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _replacer(secrets),
        *([_as_it_is] if on_terminal else []),
    ]
    # Ours go straight to the stream: on the way through `logging` a line takes ten times as long, and each attempt
    # writes one.
    structlog.configure(
        processors=[*shared, structlog.dev.ConsoleRenderer() if on_terminal else _as_json],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
        if on_terminal
        else structlog.BytesLoggerFactory(cast("BinaryIO", stream)),
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


def print_without_blocking() -> LogStream:
    """Put streams that never block in place of stdout and stderr; return the one of stderr.

    A descriptor that was closed before the start may belong to anything by now: nothing is written to it.
    """
    streams: dict[str, LogStream] = {}
    for name, descriptor in (("stdout", 1), ("stderr", STANDARD_ERROR)):
        before = getattr(sys, f"__{name}__")
        stream = LogStream(descriptor if before else os.open(os.devnull, os.O_WRONLY))
        text = TextLogStream(stream, terminal=bool(before and before.isatty()))
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)  # Celery prints its banner there
        streams[name] = stream
    return streams["stderr"]


def _as_json(_logger: Any, _method: str, event: Any) -> bytes:
    line = msgspec.json.encode(event, enc_hook=str)
    return line if line.isascii() else visible_json(line).encode()


def _as_it_is(_logger: Any, _method: str, event: Any) -> Any:
    """Let no text from outside reach a terminal that would obey it; tracebacks and libraries keep their lines."""
    ours = {"event", "exception"}
    return {
        name: (visible_lines if name in ours else visible)(value) if isinstance(value, str) else value
        for name, value in event.items()
    }


def _replacer(secrets: Iterable[str]) -> Callable[[Any, str, Any], Any]:
    known = [value for value in secrets if len(value) >= MIN_SECRET_LENGTH]

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
