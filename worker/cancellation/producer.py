"""What a named producer may: whose jobs it may bring, and how urgent. Pure; knows no stream and no row.

Who a producer is, the stream says on which its job came: nothing inside a job names one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from worker.inputs.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.cancellation.request import CancelRequest

MAX_PRODUCERS = 100  # each has a stream that every worker waits for, and a series of its own
MAX_CONNECTIONS = 250  # that are named for one: every worker reads all of them each few seconds
MIN_PER_SECOND, MAX_PER_SECOND = 0.1, 100_000.0
# Why a job is refused: reasons of dead letters, and labels of metrics as they are.
UNKNOWN, CONNECTION, URGENT = REASONS = ("unknown_producer", "connection_not_allowed", "urgent_not_allowed")
# Keys beside the inbox have these names: `:ahead` is put aside by a repair, `:wrong` by a person.
RESERVED = frozenset({"ahead", "wrong"})

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")  # nothing that a pattern of Redis' ACL reads as more than itself


class Producer(msgspec.Struct, frozen=True, kw_only=True):
    """One producer with a stream of its own, and its rights."""

    name: str
    connections: list[str] | None  # whose orders it may cancel; None: of all
    urgent: bool  # whether it may ask for priority `urgent`
    per_second: float | None  # jobs that are read from its stream; None: as they come


def problem_of_producer(name: str) -> str | None:
    """Say what is wrong with the name of a producer, so that it reads on after it; None where nothing is."""
    if not _NAME.fullmatch(name):
        return "is no producer's name: use up to 40 of a-z, 0-9, '.', '_' and '-', a letter or a digit first"
    if name in RESERVED:
        return "is the name of a key beside the inbox: use another one"
    return None


def refusal_of(producer: Producer | None, name: str, request: CancelRequest) -> tuple[str, str] | None:
    """Return the reason and a sentence where the producer of this name may not bring this job; else None."""
    if producer is None:
        return (
            UNKNOWN,
            f"Nobody has added a producer {name}: `cancel-worker producers add {name}`, then send it again.",
        )
    if producer.connections is not None and request.connection_id not in producer.connections:
        connection = printable(repr(request.connection_id))
        return CONNECTION, f"Producer {name} may not cancel orders of connection {connection}."
    if request.priority == "urgent" and not producer.urgent:
        return URGENT, f"Producer {name} may not ask for priority 'urgent'."
    return None


def check_rights(connections: Sequence[str] | None, per_second: float | None) -> None:
    """Raise ValueError, with a sentence, for rights that cannot be kept."""
    if connections is not None and len(connections) > MAX_CONNECTIONS:
        raise ValueError(
            f"{len(connections)} connections are named; {MAX_CONNECTIONS} is the most: allow it all of them."
        )
    if per_second is not None and not MIN_PER_SECOND <= per_second <= MAX_PER_SECOND:
        raise ValueError(f"--per-second is {per_second:g}: use {MIN_PER_SECOND:g} to {MAX_PER_SECOND:g}.")
