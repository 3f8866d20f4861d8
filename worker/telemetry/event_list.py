"""Writes `docs/log-events.md` from `events.py`: run `python -m worker.telemetry.event_list > docs/log-events.md`.

Knows Markdown; what an event is called and says, `events` knows.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from worker.telemetry.events import ALERTS, LOG_EVENTS, STREAM_EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.telemetry.events import Event

_TOP = """\
# Log events

Written by `make log-events` from [worker/telemetry/events.py](../worker/telemetry/events.py): change that file, and
run it again. What to do about each from warning up is in the [runbook](../ops/runbook.md).

A log line is one JSON object with `event`, `level`, `timestamp` (UTC) and the fields below; libraries write lines of
their own. Fields in brackets are there only where they say something. No field holds a token, a header, a document of
an order or a text from outside.

`id` is the cancellation's, also in Flower and at Trackstar: `cancel-worker show ID`. `traceparent` is the trace that
its job came with.
"""
_LINES = """\
Levels: `info`, `warning`, `error`; `bug` is an error with its traceback, and goes to Sentry.
"""
_ALERTS = """\
What only a person can help: an `error` line, and an event in Sentry, at most one a minute of one kind and connection.
"""
_STREAM = """\
Told by the feed (`client.events`, `cancel-worker events list`) and, as JSON, on the Redis stream
`cancellations:events`; those of dead letters on `cancellations:dead-letters`. Each also has its own `id`, `type`,
`schema` and `at`, and those of a cancellation its job's numbers, `metadata` and `requested_by` and the connection's
name: `worker/cancellation/event.py`.
"""


def event_list() -> str:
    """Return the document."""
    parts = (
        _TOP,
        f"## Lines\n\n{_LINES}",
        _table(LOG_EVENTS, level=True),
        f"## Alerts\n\n{_ALERTS}",
        _table(ALERTS, level=False),
        f"## Events for other systems\n\n{_STREAM}",
        _table(STREAM_EVENTS, level=False).replace(" `id` ", " `cancellation_id` "),
    )
    return "\n".join(parts)


def _table(events: Mapping[str, Event], *, level: bool) -> str:
    head = ["event", *(["level"] if level else []), "means", "fields"]
    rows = [
        [f"`{name}`", *([each.level] if level else []), each.meaning, _fields(each)]
        for name, each in sorted(events.items())
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _fields(event: Event) -> str:
    return " ".join([*(f"`{name}`" for name in event.fields), *(f"[`{name}`]" for name in event.optional)])


if __name__ == "__main__":
    sys.stdout.write(event_list())
