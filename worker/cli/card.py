"""The support card: one cancel in plain words, whether it is safe to refund, why, and what a person can do now.

Knows a timeline as the ledger tells it; asks nothing and changes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from worker.cancellation.lifecycle import NOT_FOUND_YET, why_not_change, why_not_replay, why_not_withdraw
from worker.cancellation.status import Evidence, SafeToRefund, Status, Verdict
from worker.cli.parts import console, refund
from worker.cli.reasons import in_words
from worker.cli.times import moment
from worker.cli.words import connection_called, remedy_of_hold, why_a_person
from worker.inputs.text import visible_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.queries import Timeline
    from worker.ledger.record import Cancellation

_ENDS = {
    Status.SUCCEEDED: "The cancel succeeded",
    Status.REJECTED: "The cancel was refused for good",
    Status.EXHAUSTED: "The cancel was given up after the last try",
    Status.EXPIRED: "The cancel ran out of time (send_by)",
    Status.WITHDRAWN: "The cancel was taken back before it was sent",
}
# What proves a verdict: where it is cancelled, and where it is not.
_PROOF: dict[str, tuple[str, str]] = {
    Evidence.RESPONSE: ("the answer to our request shows it cancelled",) * 2,
    Evidence.REPLAYED_RESPONSE: ("the stored answer to our earlier request shows it cancelled",) * 2,
    Evidence.READ_BACK: (
        "the order was read and shows cancelled",
        "the order was read and goods have left",
    ),
    Evidence.FRESH_READ_BACK: ("it is cancelled", "it is still open in a copy that is younger than our last request"),
    Evidence.REFUSAL: ("Trackstar refused the request and never sent it to the warehouse",) * 2,
    Evidence.NEVER_SENT: ("no request was ever sent for it",) * 2,
    Evidence.PERSON: ("a person looked into the warehouse",) * 2,
}


def print_card(found: Timeline, expected: datetime | None) -> None:
    """Print one cancel for a person; `expected` is when it is sent, if that is known."""
    row = found.cancellation
    where = connection_called(row.connection_id, row.connection_name, row.connection_owner)
    console.print(f"Order {row.order_id} of connection {where}", style="bold")
    for what, value in _names(row):
        if value:
            console.print(f"{what} {value}")
    console.print(f"Safe to refund: {because(row)}", style=refund(row).style)
    console.print(_in_words(row))
    if expected is not None and not row.ended:
        late = ", which is after its send_by" if row.send_by and expected >= row.send_by else ""
        console.print(f"Expected to be sent at {moment(expected)}{late}.")
    for sentence in what_to_do(row):
        console.print(f"- {sentence}", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for when, what in sorted(_lines(found), key=lambda line: line[0]):
        table.add_row(moment(when), what)
    console.print(table)
    console.print(f"id {row.id}, priority {row.priority}, attempts {row.attempts}", style="dim")
    if document := document_of(row):
        console.print(visible_json(bytes(document)), soft_wrap=True)


def _names(row: Cancellation) -> tuple[tuple[str, str | None], ...]:
    return (
        ("number", row.order_number),
        ("reference", row.reference_id),
        ("batch", row.batch),
        ("trace", row.traceparent),
        ("producer", row.producer),
    )


def document_of(found: Cancellation) -> msgspec.Raw | None:
    """Return the order as it came, but for line breaks between its words."""
    document = found.order_snapshot
    return msgspec.Raw(msgspec.json.format(document.encode(), indent=-1)) if document else None


def because(row: Cancellation) -> str:
    """Answer whether it is safe to refund, as of when or known by when, and why."""
    answer = row.safe_to_refund
    why, _ = why_a_person(row)
    if why:
        return f"{answer}: needs a person, for {why}."
    if row.known_by and answer is SafeToRefund.NOT_YET:
        late = " That time has passed: see `cancel-worker doctor`." if row.known_by < datetime.now(UTC) else ""
        return f"{answer}, known by {moment(row.known_by)}.{late}"
    cancelled = answer is SafeToRefund.YES
    proof = f": {_PROOF[row.evidence][not cancelled]}" if row.evidence in _PROOF else ""
    was = "is" if cancelled else "was not"
    return f"{answer}, as of {moment(row.as_of)}. The order {was} cancelled{proof}."


def _in_words(row: Cancellation) -> str:
    if row.hold_reason and not row.ended:
        until = f" until {moment(row.held_until)}" if row.held_until else ""
        return f"It waits: its connection is held ({row.hold_reason}){until}."
    last = in_words(row.outcome_reason) if row.outcome_reason else "nothing"
    if row.run_at:
        sooner = ", or when a crawl has ended" if row.outcome_reason == NOT_FOUND_YET else ""
        return f"It is tried again at {moment(row.run_at)}{sooner}; the last outcome: {last}."
    if not row.ended:
        return f"It is {row.status}."
    later = f" The order is looked at again at {moment(row.confirm_at)}." if row.confirm_at else ""
    return f"{_ENDS[Status(row.status)]}: {last}.{_warehouse_said(row)}{later}"


def _warehouse_said(row: Cancellation) -> str:
    status = f" The order's status in the answer: {row.order_status}." if row.order_status else ""
    words = f" Details: {row.outcome_message}" if row.outcome_message else ""
    return status + words


def what_to_do(row: Cancellation) -> list[str]:
    """Return what a person can do now, a sentence each; empty where there is nothing to do but to wait."""
    return list(_of_an_end(row) if row.ended else _of_what_waits(row))


def _of_what_waits(row: Cancellation) -> Iterator[str]:
    status, verdict = Status(row.status), Verdict(row.verdict) if row.verdict else None
    if row.hold_reason:
        yield remedy_of_hold(row.hold_reason, row.connection_id)
    if why_not_withdraw(status, verdict) is None:
        yield f"To take it back before it is sent: `cancel-worker withdraw {row.id}`."
    if why_not_change(status, verdict) is None and not row.hold_reason:
        at_once = " or `--now`" if row.run_at else ""
        yield f"To have it sent sooner: `cancel-worker change {row.id} --priority urgent`{at_once}."


def _of_an_end(row: Cancellation) -> Iterator[str]:
    answer = row.safe_to_refund
    _, remedy = why_a_person(row)
    if remedy:
        yield remedy
    elif answer is SafeToRefund.NOT_YET:
        yield "Wait until it is known; do not refund before."
    if answer is not SafeToRefund.NO:
        return
    if row.evidence == Evidence.READ_BACK:
        yield "The goods have left: agree on a return with the customer."
    elif why_not_replay(Status(row.status), Verdict.NOT_CANCELLED) is None:
        yield f"To send it again, when what stood against it is mended: `cancel-worker replay {row.id} --reason ...`."


def _lines(found: Timeline) -> list[tuple[datetime, str]]:
    row = found.cancellation
    lines = [(row.requested_at, _asked(row)), (row.received_at, "received into the ledger")]
    lines += [(tried["started_at"], _tried(tried)) for tried in found.attempts]
    lines += [(told["created_at"], _told(told["type"], told["payload"])) for told in found.events]
    lines += [
        (act.at, f"{act.action}, by {act.actor}" + (f": {act.reason}" if act.reason else "")) for act in found.acts
    ]
    return lines


def _asked(row: Cancellation) -> str:
    asked = f"requested by {row.requested_by}" if row.requested_by else "requested"
    why = f": {row.reason}" if row.reason else ""
    return asked + why + (f" (send by {moment(row.send_by)})" if row.send_by else "")


def _tried(tried: dict[str, Any]) -> str:
    verb = "cancel sent" if tried["kind"] == "cancel" else "order read back"
    again = f" (generation {tried['generation']})" if tried["generation"] > 1 else ""
    said = f" Details: {tried['error']}." if tried["error"] else ""
    answer = f"HTTP {tried['status']}, " if tried["status"] else ""
    request = f", request {tried['request_id']}" if tried["request_id"] else ""
    return f"{verb}{again}: {in_words(tried['reason'])}.{said} ({answer}{tried['reason']}{request})"


def _told(kind: str, payload: dict[str, Any]) -> str:
    said = kind.replace(".", " ").replace("_", " ")
    if kind == "cancellation.known_by_moved":
        return f"{said} to {payload.get('known_by')}"
    if kind == "cancellation.needs_person":
        return f"{said} ({payload.get('needs_person')})"
    if payload.get("by"):
        return f"{said}: {payload.get('verdict')}, says {payload['by']}: {payload.get('note')}"
    return f"{said}: {payload['verdict']}" if payload.get("verdict") else said
