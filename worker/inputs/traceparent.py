"""A `traceparent` (W3C Trace Context) as it comes with a job: read and bounded once. Pure; follows no trace.

What cannot be read is no trace: nobody's order may ship because of a header that only people look at.
"""

from __future__ import annotations

import re
from typing import Any

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_INVALID_VERSION = "ff"
_MOST = 512  # characters that are looked at: a later version may be longer than ours


def read_traceparent(value: Any) -> str | None:
    """Return the trace in the form of version 00, or None for whatever is not one.

    A later version is read by the rules of version 00, as the standard has it.
    """
    found = _FORM.fullmatch(value.strip(" \t")) if isinstance(value, str) and len(value) <= _MOST else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == _INVALID_VERSION or (version == "00" and more) or not (trace_id.strip("0") and parent_id.strip("0")):
        return None
    return f"00-{trace_id}-{parent_id}-{flags}"


def ids_of(traceparent: str) -> tuple[str, str]:
    """Return the ids of the trace and of the span that caused a job, of what `read_traceparent` returned."""
    _, trace_id, parent_id, _ = traceparent.split("-")
    return trace_id, parent_id
