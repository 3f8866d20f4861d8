"""`telemetry/events.py` lists what the code says, no more and no less: each event with its level and its fields."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.cancellation.order_proof import RefundNews
from worker.cancellation.outcome import ALARMING_REASONS
from worker.telemetry.event_list import event_list
from worker.telemetry.events import ALERTS, LOG_EVENTS, LOOPS, STREAM_EVENTS, Event

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).resolve().parents[2] / "worker"
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
SPREAD = {  # what is spread into a call, by its last word
    "named": {"id", "connection_id", "order_id"},
    "who": {"id", "connection_id", "order_id"},
    "_named": {"connection_id", "ids"},
}
STATED_BY_NAME = {f"{loop}.{word}" for loop in LOOPS for word in ("unavailable", "recovered", "crashed")}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that may say something, with the name of what is called."""
    for file in WORKER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def level_of(called: str) -> str | None:
    owner, _, method = called.rpartition(".")
    if owner == "log" and method in LEVELS:
        return LEVELS[method]
    return {"alert": "alert", "report_bug": "bug"}.get(called)


def names_of(call: ast.Call) -> list[str]:
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant):
        return [str(first.value)]
    if isinstance(first, ast.JoinedStr) and ast.unparse(first) == "f'cancellation.{row.reason}'":
        return [f"cancellation.{reason}" for reason in ALARMING_REASONS]
    return []


def word_of(spread: ast.expr) -> str:
    called = spread.func if isinstance(spread, ast.Call) else spread
    return ast.unparse(called).rpartition(".")[2]


def said() -> dict[tuple[str, str], set[str]]:
    """What the code says: fields by level and name."""
    found: dict[tuple[str, str], set[str]] = {}
    for called, call in calls():
        if level := level_of(called):
            fields = {each.arg for each in call.keywords if each.arg} - {"exc_info"}
            fields |= {
                name for each in call.keywords if each.arg is None for name in SPREAD.get(word_of(each.value), ())
            }
            for name in names_of(call):
                found.setdefault((level, name), set()).update(fields)
    return found


def listed() -> dict[tuple[str, str], set[str]]:
    both = [*LOG_EVENTS.items(), *ALERTS.items()]
    return {(event.level, name): set(event.fields) for name, event in both if name not in STATED_BY_NAME}


def test_every_log_event_and_alert_is_listed_with_its_level_and_fields() -> None:
    # `LogStream` cannot log by itself that it has dropped lines: it writes that line as bytes.
    assert listed() == said() | {("warning", "log.dropped"): {"count"}}


def test_no_line_names_a_cancellation_without_its_trace() -> None:
    written_here = {
        name
        for called, call in calls()
        if level_of(called)
        for name in names_of(call)
        if {each.arg for each in call.keywords} & {"id", "order_id", "ids"}
    }

    assert set() == written_here


@pytest.mark.parametrize("event", [each for known in (LOG_EVENTS, ALERTS, STREAM_EVENTS) for each in known.values()])
def test_whatever_names_a_cancellation_may_hold_its_trace(event: Event) -> None:
    expected = ["traceparent"] * ("id" in event.fields) + ["traceparents"] * ("ids" in event.fields)

    assert expected == [name for name in event.optional if name.startswith("traceparent")]


def test_every_thread_that_a_worker_runs_is_among_the_loops() -> None:
    made = {str(ast.literal_eval(call.args[0])) for called, call in calls() if called == "Loop" and call.args}

    assert set(LOOPS) == made


def test_every_stream_event_that_the_ledger_writes_is_listed() -> None:
    prefixes = ("cancellation.", "connection.", "trackstar.", "dead_letter.", "stream.", "endpoint.")
    refunds = {f"refund.{word}" for word in RefundNews}
    texts = {
        node.value
        for file in (WORKER / "ledger").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    assert set(STREAM_EVENTS) == refunds | {each for each in texts if each.startswith(prefixes) and " " not in each}


@pytest.mark.parametrize("name", [*LOG_EVENTS, *ALERTS, *STREAM_EVENTS])
def test_every_event_says_what_it_means_in_a_sentence(name: str) -> None:
    known = {**LOG_EVENTS, **ALERTS, **STREAM_EVENTS}

    assert known[name].meaning.endswith((".", "?"))


def test_the_document_of_events_is_the_one_that_make_log_events_writes() -> None:
    assert event_list() == (WORKER.parent / "docs" / "log-events.md").read_text()


@pytest.mark.parametrize("name", [*LOG_EVENTS, *ALERTS, *STREAM_EVENTS])
def test_no_meaning_breaks_the_table_of_the_document(name: str) -> None:
    assert f"| `{name}` |" in event_list()
    known = {**LOG_EVENTS, **ALERTS, **STREAM_EVENTS}
    assert not set("|\n") & set(known[name].meaning)
