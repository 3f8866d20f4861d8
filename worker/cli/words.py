"""What a person is told of proof and crawls, in plain words. Knows no command, no console and no ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.cancellation.freshness import broken
from worker.cancellation.proof import NeedsPerson
from worker.cancellation.status import SafeToRefund
from worker.cli.times import minute, minute_from

if TYPE_CHECKING:
    from datetime import datetime

    from worker.cancellation.freshness import Crawls
    from worker.ledger.record import Cancellation

_LOOK = "Look at the order in the warehouse, then say what you saw: `cancel-worker resolve {id} cancelled` or "
_LOOK += "`... not_cancelled`, with --reason."
# Of each reason: what is wrong, and what to do.
_PERSON = {
    NeedsPerson.CRAWLS_DISABLED: (
        "Trackstar's crawls of this connection are disabled",
        "Let Trackstar enable them, and it is known by itself. " + _LOOK,
    ),
    NeedsPerson.CRAWLS_FAILING: (
        "Trackstar's crawls of this connection fail",
        "See what Trackstar says of the connection: `cancel-worker doctor`. " + _LOOK,
    ),
    NeedsPerson.CRAWLS_OVERDUE: (
        "Trackstar's crawls of this connection do not come",
        "Ask Trackstar; when they come, it is known by itself. " + _LOOK,
    ),
    NeedsPerson.ORDER_NOT_IN_COPY: ("Trackstar's copy does not hold the order", _LOOK),
    NeedsPerson.ACCEPTED_BUT_OPEN: (
        "the warehouse accepted the cancel, and two crawls later the order is still not cancelled",
        "A warehouse may apply it late. " + _LOOK,
    ),
    NeedsPerson.UNREADABLE: ("the order could not be read", _LOOK),
    NeedsPerson.NO_ACCESS: (
        "Trackstar does not let us read the order",
        "Give the connection a new token: `cancel-worker connections rotate`. " + _LOOK,
    ),
    NeedsPerson.CONNECTION_HELD: (
        "it was never sent, and its connection is held",
        "Open the connection: `cancel-worker doctor` says how. Or take it back: `cancel-worker withdraw {id}`.",
    ),
}


_RESUME = "`cancel-worker connections resume {id} --reason ...`"
_HOLDS = {
    "credentials": (
        "Give it a new token: `cancel-worker connections rotate {id}`; or, where the warehouse's own credentials have "
        "changed, let the customer enter them anew: `cancel-worker connections mend-link {id}`."
    ),
    "outage": "Its warehouse does not answer; it is probed and goes on by itself.",
    "trackstar_outage": "Trackstar does not answer; it is probed and goes on by itself.",
    "rate_limited": f"Trackstar asks for a pause; it ends by itself, or by {_RESUME}.",
    "operator": f"A person holds it (`cancel-worker audit list --target {{id}}` says who): {_RESUME}.",
    "unknown_connection": "Nobody has added it: `cancel-worker connections add {id}`.",
}


def remedy_of_hold(reason: str, connection_id: str) -> str:
    """Say what to do about a connection that is held."""
    return _HOLDS.get(reason, "See `cancel-worker connections list`.").replace("{id}", connection_id)


def refund_in_words(found: Cancellation) -> str:
    """Answer whether it is safe to refund, with the time of the answer, in few words."""
    answer = found.safe_to_refund
    if answer is not SafeToRefund.NOT_YET:
        return f"{answer}, as of {minute(found.as_of)}" if found.as_of else answer
    if found.known_by:
        return f"{answer}, known by {minute_from(found.known_by)}"
    return f"{answer}: needs a person ({found.needs_person})"


def why_a_person(found: Cancellation) -> tuple[str, str]:
    """Return why no crawl settles it, and what to do; both empty where no person is needed."""
    if found.known_by or not found.needs_person or found.safe_to_refund is not SafeToRefund.NOT_YET:
        return "", ""
    why, remedy = _PERSON[NeedsPerson(found.needs_person)]
    return why, remedy.replace("{id}", found.id)


def connection_called(connection_id: str, name: str | None, owner: str | None) -> str:
    """Write a connection as people know it: its id, and what somebody has stated beside it."""
    # What nobody has added, and the connection `default`, have their id for a name.
    stated = [name or "" if name != connection_id else "", f"owner {owner}" if owner else ""]
    told = ", ".join(filter(None, stated))
    return f"{connection_id} ({told})" if told else connection_id


def in_bytes(count: int) -> str:
    """Write a size to three figures."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004 - as the units have it
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def in_time(seconds: float) -> str:
    """Write a length of time in its largest unit."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def in_few_words(crawls: Crawls | None, now: datetime) -> str:
    """Say how old Trackstar's copy of a connection's orders is, and by when the next crawl has ended."""
    if crawls is None or not crawls.known:
        return "unknown"
    problem = broken(crawls, now)
    copy = f"copy of {minute(crawls.began_at)}" if crawls.began_at else "no copy yet"
    if problem:
        return f"{problem.replace('_', ' ')}, {copy}"
    due = crawls.next_end(crawls.began_at) if crawls.began_at else None
    if due is None:
        return copy
    if due > now:
        return f"{copy}, next crawl by {minute_from(due)}"
    late = f"next crawl late since {minute(due)}"
    return f"{copy}, {late}" if crawls.seen_at > due else f"{copy} or newer, asked at {minute(crawls.seen_at)}"
