"""A `traceparent` is W3C's or it is none; whatever it is, the job that it came with is a job."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.messages import JOB, envelope
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.celery_message import read_message
from worker.cancellation.request import make_request, parse_request
from worker.inputs.traceparent import ids_of, read_traceparent

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACE = f"00-{TRACE_ID}-{SPAN_ID}-01"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NONE = [
    *("", "0", TRACE[:-1], TRACE + "0", TRACE + "-more", TRACE.upper(), TRACE + "\n", TRACE.replace("-", "_")),
    f"ff-{TRACE_ID}-{SPAN_ID}-01",
    f"00-{'0' * 32}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID}-{SPAN_ID}-0g",
    f"01-{TRACE_ID}-{SPAN_ID}-01more",
    f"01-{TRACE_ID}-{SPAN_ID}-01-{'x' * 1000}",
    f"00-{TRACE_ID.replace('4', '٤')}-{SPAN_ID}-01",
    *(7, 1.5, True, [TRACE], {"traceparent": TRACE}, "\x1b[2J", "a\x00b"),
]


@pytest.mark.parametrize(
    "value",
    [TRACE, f" {TRACE}\t", f"01-{TRACE_ID}-{SPAN_ID}-01", f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-later"],
)
def test_what_the_standard_can_read_is_kept_in_the_form_of_version_00(value: str) -> None:
    assert TRACE == read_traceparent(value)
    assert (TRACE_ID, SPAN_ID) == ids_of(TRACE)


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_trace_is_dropped_and_stops_no_cancel(value: Any) -> None:
    stated = {**JOB, "traceparent": value}

    assert read_traceparent(value) is None
    assert make_request(JOB) == make_request(stated)
    assert make_request(JOB) == parse_request(json.dumps(stated))
    assert JOB == json.loads(read_message(envelope(headers=_headers(value))))


@given(value=JSON)
def test_no_json_value_as_a_trace_stops_a_cancel(value: Any) -> None:
    found = parse_request(json.dumps({**JOB, "traceparent": value}))

    assert make_request(JOB).record_id == found.record_id
    assert found.traceparent in {None, read_traceparent(value)}


def test_the_header_of_a_celery_message_counts_where_the_job_states_none() -> None:
    other = TRACE.replace("4bf9", "aaaa")

    assert {**JOB, "traceparent": TRACE} == json.loads(read_message(envelope(headers=_headers(TRACE))))
    stated = envelope(([], {**JOB, "traceparent": other}, {}), headers=_headers(TRACE))
    assert {**JOB, "traceparent": other} == json.loads(read_message(stated))


def test_a_trace_is_no_part_of_the_intent() -> None:
    assert make_request(JOB).record_id == make_request({**JOB, "traceparent": TRACE}).record_id


def _headers(value: Any) -> dict[str, Any]:
    return {"task": "worker.cancel_order", "id": "t-1", "traceparent": value}
