"""What an answer means. One ordered function for cancels, one for read-backs; both total, both pure.

The source of every line is the API's table of errors: decide on (status, origin), never on the text.
"""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus

import msgspec

from worker.cancellation.answer import Answer, NoReply, Order, Reply
from worker.inputs.headers import RetryAfter
from worker.inputs.ids import same_order


class Kind(StrEnum):
    """The seven things an answer to a cancel can mean."""

    ACCEPTED = "accepted"  # Trackstar said yes
    REFUSED = "refused"  # no, and asking again will not change it
    IN_DOUBT = "in_doubt"  # it may have landed: ask again with the same key
    NOT_SENT = "not_sent"  # it cannot have landed: ask again
    SLOW_DOWN = "slow_down"  # too fast: ask again later, nothing was tried
    STILL_RUNNING = "still_running"  # the same key is still in flight: ask again later
    NO_ACCESS = "no_access"  # the credentials are wrong, not the order: hold the connection


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The meaning of one answer, with its reason as a bounded snake_case word."""

    kind: Kind
    reason: str
    message: str | None = None
    order: Order | None = None
    unused_fields: str | None = None
    replayed: bool = False
    retry_after: RetryAfter | None = None  # where the server's word counts
    # A refusal may mean "already cancelled"; a yes that cannot be read, anything; one that was stored is old.
    read_first: bool = False


class OrderState(StrEnum):
    """The things an answer to a read-back can mean."""

    CANCELLED = "cancelled"  # proof
    SHIPPED = "shipped"  # proof: goods have left
    OPEN = "open"  # proves nothing: the copy may be an hour old
    ABSENT = "absent"  # not in Trackstar's copy
    UNREADABLE = "unreadable"  # refused for good; reading again will not help
    LATER = "later"  # no answer this time
    NO_ACCESS = "no_access"


class ReadBack(msgspec.Struct, frozen=True, kw_only=True):
    """What a read-back showed of one order."""

    shows: OrderState
    reason: str
    order: Order | None = None
    retry_after: RetryAfter | None = None
    spends_attempt: bool = True


# Words for the statuses whose meaning is documented; the rest read http_<status>.
_TRACKSTAR_REFUSALS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "key_reused",
    HTTPStatus.FORBIDDEN: "not_enabled",
    HTTPStatus.NOT_FOUND: "order_not_found",
    HTTPStatus.UNPROCESSABLE_ENTITY: "validation_failed",
}

NOT_SUPPORTED = "not_supported"  # the warehouse's system knows no cancel

# A person must act on these although each ends one cancellation only.
ALARMING_REASONS = frozenset({"key_reused", "not_enabled", "redirected", "tls_failed"})


def classify(answer: Answer, order_id: str) -> Outcome:
    """Say what the answer to `PUT .../cancel` means for this order."""
    if isinstance(answer, NoReply):
        return _no_reply(answer)
    status = answer.status
    if _is_yes(status):
        return _success(answer, order_id)
    # Before the 4xx and 5xx: these three mean the same whoever says them.
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _outcome(Kind.SLOW_DOWN, "rate_limited", answer, obey=True)
    if status == HTTPStatus.UNAUTHORIZED:
        return _outcome(Kind.NO_ACCESS, _access_reason(answer), answer)
    if status == HTTPStatus.NOT_IMPLEMENTED:
        # Permanent although 5xx: this integration has no cancel.
        return _outcome(Kind.REFUSED, NOT_SUPPORTED, answer)
    if 400 <= status < 500:  # noqa: PLR2004
        return _client_error(answer)
    if 300 <= status < 400:  # noqa: PLR2004
        # Never followed: the headers carry secrets. Nobody documents what a redirected write did.
        return _outcome(Kind.IN_DOUBT, "redirected", answer)
    # 5xx, and numbers that HTTP does not know: it may have landed.
    return _outcome(Kind.IN_DOUBT, f"http_{status}", answer, obey=status == HTTPStatus.SERVICE_UNAVAILABLE)


def _is_yes(status: int | None) -> bool:
    # 200 is documented; the others say the same by HTTP's own rules.
    return status is not None and 200 <= status < 300  # noqa: PLR2004


def _no_reply(answer: NoReply) -> Outcome:
    kind = Kind.IN_DOUBT if answer.sent else Kind.NOT_SENT
    return Outcome(kind=kind, reason=answer.reason, message=answer.detail, read_first=_is_yes(answer.status))


_WITHOUT_A_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT}


def _success(reply: Reply, order_id: str) -> Outcome:
    order = reply.orders[0] if reply.orders else None
    if reply.body != "object" and not (reply.body == "empty" and reply.status in _WITHOUT_A_BODY):
        reason = "not_json" if reply.body == "not_json" else "unexpected_body"
        return _outcome(Kind.IN_DOUBT, reason, reply, read_first=True)
    # No field is promised, so a missing id is no contradiction; another order's id is.
    named = {reply.id, order.id if order else None} - {None, order_id}
    if not all(same_order(shown, order_id) for shown in named if shown is not None):
        return _outcome(Kind.IN_DOUBT, "wrong_order_in_answer", reply, read_first=True)
    if order is None and reply.message is not None:
        return _outcome(Kind.REFUSED, "error_in_answer", reply, read_first=True)
    return Outcome(
        kind=Kind.ACCEPTED,
        reason="accepted",
        order=order,
        unused_fields=reply.unused_fields,
        replayed=reply.replayed,
        read_first=reply.replayed,  # it is as old as the first request with its key; the goods may have left since
    )


def _client_error(reply: Reply) -> Outcome:
    status = reply.status
    if reply.body not in {"object", "other_json"}:
        # Not in Trackstar's words, so a gateway's: it does not know the order, and the next try may get through.
        return _outcome(Kind.IN_DOUBT, f"http_{status}", reply)
    if reply.origin == "integration":
        if status == HTTPStatus.FORBIDDEN:
            return _outcome(Kind.NO_ACCESS, _access_reason(reply), reply)
        return _outcome(Kind.REFUSED, "refused_by_warehouse", reply, read_first=True)
    if status == HTTPStatus.CONFLICT:
        return _outcome(Kind.STILL_RUNNING, "still_running", reply)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return _outcome(Kind.IN_DOUBT, "http_408", reply)
    reason = _TRACKSTAR_REFUSALS.get(status)
    if reply.origin == "trackstar":
        return _outcome(Kind.REFUSED, reason or f"http_{status}", reply)
    # Nobody signed it: it may be the warehouse's word, so the order is looked at before it is believed.
    unsigned = reason if status == HTTPStatus.NOT_FOUND else None
    return _outcome(Kind.REFUSED, unsigned or f"http_{status}", reply, read_first=True)


def _access_reason(reply: Reply) -> str:
    return "warehouse_credentials" if reply.origin == "integration" else "unauthorized"


def _outcome(kind: Kind, reason: str, reply: Reply, *, obey: bool = False, read_first: bool = False) -> Outcome:
    return Outcome(
        kind=kind,
        reason=reason,
        message=reply.message,
        # `retry-after` comes on ordinary answers too; it counts only where the server asks for patience.
        retry_after=reply.retry_after if obey else None,
        read_first=read_first,
    )


def classify_read(answer: Answer, order_id: str) -> ReadBack:
    """Say what the answer to a read-back shows of this order."""
    if isinstance(answer, NoReply):
        return ReadBack(shows=OrderState.LATER, reason=answer.reason)
    status = answer.status
    if status == HTTPStatus.OK and answer.body == "object":
        return _seen(answer, order_id)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ReadBack(
            shows=OrderState.LATER, reason="rate_limited", retry_after=answer.retry_after, spends_attempt=False
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return ReadBack(shows=OrderState.NO_ACCESS, reason=_access_reason(answer))
    if answer.body in {"object", "other_json"} and 400 <= status < 500:  # noqa: PLR2004
        if status == HTTPStatus.NOT_FOUND:
            return ReadBack(shows=OrderState.ABSENT, reason="order_not_found")
        return ReadBack(shows=OrderState.UNREADABLE, reason=f"http_{status}")
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return ReadBack(shows=OrderState.UNREADABLE, reason=NOT_SUPPORTED)
    obey = status == HTTPStatus.SERVICE_UNAVAILABLE
    return ReadBack(shows=OrderState.LATER, reason=f"http_{status}", retry_after=answer.retry_after if obey else None)


def _seen(reply: Reply, order_id: str) -> ReadBack:
    order = next((order for order in reply.orders if _tells_of(order, order_id, listed=reply.listed)), None)
    if order is None:
        # Neither says that there is none: an error instead of an order, or a list with more than was asked for.
        if reply.more or (reply.message is not None and not reply.orders):
            return ReadBack(shows=OrderState.LATER, reason="unexpected_list" if reply.more else "error_in_answer")
        return ReadBack(shows=OrderState.ABSENT, reason="order_not_found")
    return judge_order(order)


def judge_order(order: Order) -> ReadBack:
    """Say what an order shows that was read."""
    if order.shipped:  # also of one that is cancelled: what has left is not stopped
        return ReadBack(shows=OrderState.SHIPPED, reason="read_shipped", order=order)
    if order.status == "cancelled":
        return ReadBack(shows=OrderState.CANCELLED, reason="read_cancelled", order=order)
    return ReadBack(shows=OrderState.OPEN, reason="read_open", order=order)


def _tells_of(order: Order, order_id: str, *, listed: bool) -> bool:
    # A single read names its order by its path; in a list only the very id tells whose line it is.
    if listed:
        return order.id == order_id
    return order.id is None or same_order(order.id, order_id)
