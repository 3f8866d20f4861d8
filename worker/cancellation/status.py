"""Every status with its legal transitions, and every word for what is known of an order. Knows no rule beyond these.

pending ──► in_flight ──► succeeded | rejected | exhausted | expired
▲            │
├────────────┤  given back unsent, or its connection is held
│            ▼
└──────── waiting   (until run_at)

expired and withdrawn are also reached from pending and waiting; what is pending beyond the retry horizon (its
connection is held) is given up; replay leads from an ended status back to pending.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    PENDING = "pending"  # accepted; a dispatcher claims it when its turn comes
    QUEUED = "queued"  # by a worker of version 0.1, which marked a row before it claimed it
    IN_FLIGHT = "in_flight"  # claimed by a worker; the record of its answer ends that, or the rescue
    WAITING = "waiting"  # until run_at; then the housekeeper makes it pending
    SUCCEEDED = "succeeded"  # Trackstar answered 200, or a read-back proved the cancel
    REJECTED = "rejected"  # refused for good
    EXHAUSTED = "exhausted"  # gave up after the retry horizon
    EXPIRED = "expired"  # send_by passed before it could be sent (again)
    WITHDRAWN = "withdrawn"  # taken back before it was sent


class Verdict(StrEnum):
    """What we know about the order."""

    CANCELLED = "cancelled"  # proven
    ACCEPTED = "accepted"  # Trackstar said yes, not yet seen
    NOT_CANCELLED = "not_cancelled"  # refused or never sent
    UNKNOWN = "unknown"  # in doubt


class Evidence(StrEnum):
    RESPONSE = "response"
    REPLAYED_RESPONSE = "replayed_response"
    READ_BACK = "read_back"  # a read that proves at any age
    FRESH_READ_BACK = "fresh_read_back"  # a copy younger than our last request
    REFUSAL = "refusal"  # of Trackstar itself, which never sent it on
    NEVER_SENT = "never_sent"
    PERSON = "person"


class SafeToRefund(StrEnum):
    YES = "yes"
    NO = "no"
    NOT_YET = "not yet"


S = Status
TRANSITIONS: dict[Status, frozenset[Status]] = {
    S.PENDING: frozenset({S.IN_FLIGHT, S.EXPIRED, S.WITHDRAWN, S.EXHAUSTED, S.REJECTED}),
    S.QUEUED: frozenset({S.PENDING, S.EXPIRED, S.WITHDRAWN}),
    S.IN_FLIGHT: frozenset({S.WAITING, S.PENDING, S.SUCCEEDED, S.REJECTED, S.EXHAUSTED, S.EXPIRED}),
    S.WAITING: frozenset({S.PENDING, S.EXPIRED, S.WITHDRAWN}),
    # From here on only a person's replay leads back, and never over the verdict `cancelled`.
    S.SUCCEEDED: frozenset({S.PENDING}),
    S.REJECTED: frozenset({S.PENDING}),
    S.EXHAUSTED: frozenset({S.PENDING}),
    S.EXPIRED: frozenset({S.PENDING}),
    S.WITHDRAWN: frozenset({S.PENDING}),
}
UNPROVEN = (Verdict.ACCEPTED, Verdict.UNKNOWN)
PROVEN = frozenset({Verdict.CANCELLED, Verdict.NOT_CANCELLED})
FINAL = frozenset({S.SUCCEEDED, S.REJECTED, S.EXHAUSTED, S.EXPIRED, S.WITHDRAWN})
UNSENT = frozenset({S.PENDING, S.QUEUED, S.WAITING})  # no request is in flight


def safe_to_refund(status: Status, verdict: Verdict | None) -> SafeToRefund:
    """Answer the one question of support. Nothing is told before the cancellation has ended."""
    if status not in FINAL or verdict is None:
        return SafeToRefund.NOT_YET
    if verdict is Verdict.CANCELLED:
        return SafeToRefund.YES
    return SafeToRefund.NO if verdict is Verdict.NOT_CANCELLED else SafeToRefund.NOT_YET
