"""Trackstar without a socket: the requests and readers of production's client over the rules of the sandbox."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.cancellation.answer import Answer, NoReply, NoReplyReason, Reply, read_reply
from worker.dev.sandbox import replies
from worker.dev.sandbox.contract import Caller, Contract
from worker.dev.sandbox.routes import Asked, route
from worker.inputs.body import decompressed
from worker.inputs.headers import read_retry_after
from worker.trackstar.client import DEFAULT_RETRY_CAP, TrackstarClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.dev.sandbox import World

MAX_BYTES = 2**22
# What of a step's answer arrives where no network is: nothing.
LOST: dict[str, NoReplyReason] = {
    "hang": "read_timeout",
    "drip": "read_timeout",
    "drip_head": "read_timeout",
    "reset": "connection_lost",
    "close": "connection_lost",
    "cut": "cut_body",
}


class InProcessTrackstar(TrackstarClient):
    """Answers at once and in the caller's thread; `away` says whether nobody can be reached."""

    def __init__(self, world: World, away: Callable[[], bool]) -> None:
        self._contract = Contract(world)
        self._away = away

    def _send(
        self,
        method: str,
        template: str,  # noqa: ARG002 - nobody counts these requests
        path: str,
        headers: dict[str, str],
        read: Callable[..., Reply] = read_reply,
        *,
        body: bytes | None = None,
        most: int = 1,  # noqa: ARG002 - none of these answers is too large
    ) -> Answer:
        if self._away():
            return NoReply("connect_failed", sent=False)
        caller = Caller(self._contract.world.api_key, headers.get("x-trackstar-access-token"))
        exchange = route(self._contract, Asked(method, path, caller, headers.get("Idempotency-Key"), body or b""))
        if isinstance(exchange, replies.Reply):
            return read(exchange.status, exchange.body)
        reply = self._contract.answer(exchange)
        lost = LOST.get(exchange.step.answer)
        self._contract.finish(exchange, "closed" if lost else "answered", None if lost else reply.status)
        if lost:
            return NoReply(lost, sent=True, status=reply.status if lost == "cut_body" else None)
        told = {name.lower(): value for name, value in reply.headers}
        content = decompressed(reply.body, told.get("content-encoding"), MAX_BYTES)
        pause = read_retry_after(told.get("retry-after"), date=None, now=datetime.now(UTC), cap=DEFAULT_RETRY_CAP)
        return read(reply.status, content, replayed="idempotent-replayed" in told, retry_after=pause)
