"""An entry of the streams of events: its fields, as a worker writes them and as an OMS reads them. A contract.

Pure: knows neither Redis nor the secret by name. An entry of a release before 0.2 is read too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from worker.cancellation.event import Event, make_event, read_event, write_event
from worker.cancellation.signature import SIGNATURE
from worker.errors import EventError
from worker.inputs.text import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.cancellation.signature import Signer

BEFORE = 0  # the `schema` of an event that a release before 0.2 wrote
NEVER_SAID = datetime.fromtimestamp(0, UTC)  # its `at`, where it has none

# What an entry that somebody else wrote may lead to.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, msgspec.MsgspecError)


class _Marked(msgspec.Struct):
    schema: int = BEFORE


def write_entry(number: int, event: Event, signer: Signer | None, now: datetime) -> dict[Any, Any]:
    """Return the fields of an entry: the outbox's row `number`, published at an instant, signed where one signs."""
    body = write_event(event)
    signed = signer.sign(event.id, now, body) if signer else {}
    return {"type": event.type, "event": body, "event_id": number, **signed}


def read_entry(fields: Mapping[Any, Any], signer: Signer | None) -> Event:
    """Read an entry, whose fields are bytes or text.

    Raises EventError where it is none, or `signer` did not sign it.
    """
    try:
        entry = {as_text(name): as_text(value) for name, value in fields.items()}
        body = entry["event"].encode()
        if signer is not None:
            _check(signer, entry, body)
        if msgspec.json.decode(body, type=_Marked).schema == BEFORE:
            return _read_before(entry["type"], int(entry["event_id"]), body)
        return read_event(body)
    except EventError:
        raise
    except _ODD as error:
        raise EventError(
            f"This entry is no event that this release can read ({type(error).__name__}): leave it, ask the ledger."
        ) from error


def _check(signer: Signer, entry: Mapping[str, str], body: bytes) -> None:
    if SIGNATURE not in entry:
        raise EventError(
            "This entry has no signature: it was written before the workers had EVENT_SIGNING_SECRET, or by somebody "
            "else. Do not act on it; ask the ledger."
        )
    if not signer.has_signed(entry, body):
        raise EventError(
            "This entry is not signed by the secret that is expected: it was altered, or the workers sign with "
            "another EVENT_SIGNING_SECRET. Do not act on it; ask the ledger."
        )


def _read_before(type_: str, number: int, body: bytes) -> Event:
    facts = msgspec.json.decode(body, type=dict[str, Any])
    at = msgspec.convert(facts.get("at") or NEVER_SAID, datetime)
    return make_event(number, type_, at, {**facts, "cancellation_id": facts.get("id"), "schema": BEFORE})
