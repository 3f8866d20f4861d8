"""What an attempt needs of the world, made of values: claims, a Trackstar that answers as it was told, a pace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from worker.cancellation.answer import Answer, NoReply, read_reply
from worker.cancellation.lifecycle import State
from worker.cancellation.policy import Policy
from worker.cancellation.proof import Unproven
from worker.cancellation.status import Evidence, Verdict
from worker.ledger.claims import ConfirmClaim, Lease, RefusalClaim, SendClaim
from worker.ledger.vault import CredentialsError
from worker.runtime.attempt import AttemptContext

if TYPE_CHECKING:
    from worker.cancellation.freshness import Crawls
    from worker.ledger.vault import Place

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ME = "me"
TOKEN, ENCRYPTED, UNREADABLE = "token-of-shop", "encrypted", "encrypted by a key that is gone"
WAREHOUSE = {"error": "already picked", "origin": "integration"}


def _common(number: int, connection_id: str, order_id: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "lease": Lease(f"00000000-0000-5000-8000-{number:012}", ME, 1),
        "connection_id": connection_id,
        "order_id": order_id or f"o-{number}",
        "generation": 1,
        "claimed_at": NOW,
        "encrypted_token": ENCRYPTED,
        "hold_reason": None,
        **changes,
    }


def send_claim(number: int, connection_id: str = "shop-1", order_id: str | None = None, **changes: Any) -> SendClaim:
    state = {"state": State(attempts=0, first_sent_at=NOW)}
    return SendClaim(**_common(number, connection_id, order_id, **state | changes))


def refusal_claim(
    number: int, connection_id: str = "shop-1", order_id: str | None = None, **changes: Any
) -> RefusalClaim:
    """Return a claim of a refusal that was in doubt, is known, and could not be read so far."""
    state = State(
        attempts=1,
        first_sent_at=NOW,
        verdict=Verdict.UNKNOWN,
        evidence=Evidence.REFUSAL,
        reason="refused_by_warehouse",
        message="already picked",
    )
    return RefusalClaim(**_common(number, connection_id, order_id, **{"state": state} | changes))


def confirm_claim(
    number: int, connection_id: str = "shop-1", order_id: str | None = None, **changes: Any
) -> ConfirmClaim:
    known = Unproven(verdict=Verdict.ACCEPTED, evidence=Evidence.RESPONSE, ended_at=NOW - timedelta(seconds=120))
    return ConfirmClaim(**_common(number, connection_id, order_id, **{"known": known} | changes))


def reply(status: int, document: Any) -> Answer:
    return read_reply(status, json.dumps(document).encode())


NO_ANSWER = NoReply("read_timeout", sent=True)


class Trackstar:
    """Answers a cancel as it was told, and a read with the orders that it was told of. Keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = reply(200, {"data": {"status": "cancelled"}})
        self.orders: dict[str, str] = {}  # status by id
        self.bugs: set[str] = set()  # the ids of orders at which it raises what nobody expects
        self.asked: list[tuple[str, Any]] = []
        self.tokens: set[str] = set()
        self.keys: list[str] = []
        self.gate = threading.Event()  # closed, no request is answered
        self.gate.set()
        self.arrived = threading.Semaphore(0)  # released by each request that arrives

    def cancel(self, order_id: str, *, access_token: str, idempotency_key: str) -> Answer:
        self.keys.append(idempotency_key)
        self._arrive("cancel", order_id, access_token)
        return self.answer

    def read_order(self, order_id: str, *, access_token: str) -> Answer:
        self._arrive("read", order_id, access_token)
        if order_id not in self.orders:
            return reply(404, {"error": "no such order", "origin": "trackstar"})
        return reply(200, {"data": {"id": order_id, "status": self.orders[order_id]}})

    def read_orders(self, order_ids: list[str], *, access_token: str) -> Answer:
        self._arrive("read", list(order_ids), access_token)
        known = [{"id": each, "status": self.orders[each]} for each in order_ids if each in self.orders]
        return reply(200, {"data": known})

    def _arrive(self, kind: str, what: Any, access_token: str) -> None:
        self.asked.append((kind, what))
        self.tokens.add(access_token)
        self.arrived.release()
        assert self.gate.wait(10)
        if self.bugs & ({what} if isinstance(what, str) else set(what)):
            raise KeyError("a bug")


class Paces:
    """A pace that gives way, or has no room to read; keeps what it was told of."""

    def __init__(self) -> None:
        self.may_read = self.slot_comes = True
        self.ending = False
        self.waited: list[tuple[str, Any]] = []
        self.observed: list[tuple[str, str, int | None]] = []

    def wait_to_write(self, connection_id: str, slot: Any, until: float) -> bool:  # noqa: ARG002 - the shape of a pace
        self.waited.append((connection_id, slot))
        return self.slot_comes

    def end_waiting(self) -> None:
        self.ending = True

    def wait_to_read(self, connection_id: str) -> bool:  # noqa: ARG002 - the shape of a pace
        return self.may_read

    def observe(self, kind: str, connection_id: str, answer: Answer) -> None:
        status = None if isinstance(answer, NoReply) else answer.status
        self.observed.append((kind, connection_id, status))


def decrypt(encrypted: str, place: Place) -> str:
    assert "connection" == place.owner
    if encrypted == UNREADABLE:
        raise CredentialsError("its key is gone")
    assert ENCRYPTED == encrypted
    return TOKEN


def make_context(
    trackstar: Trackstar,
    pace: Paces,
    *,
    jitter: Callable[[], float] = lambda: 0.5,
    policy: Policy | None = None,
    crawls: Callable[[str], Crawls | None] = lambda _connection_id: None,
) -> AttemptContext:
    return AttemptContext(
        trackstar=trackstar,  # type: ignore[arg-type]
        decrypt=decrypt,
        policy=policy or Policy(),
        pace=pace,  # type: ignore[arg-type]
        start_within=10.0,
        crawls=crawls,
        jitter=jitter,
    )


def monotonic_ago(seconds: float) -> float:
    return time.monotonic() - seconds
