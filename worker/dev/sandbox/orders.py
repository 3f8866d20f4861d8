"""One order: what it really is, what Trackstar's copy says, and all that was asked about it.

Knows nothing of tokens, scripts' meaning or HTTP. Every change goes through `Order`; the caller holds the lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any, NamedTuple

from worker.dev.sandbox.crawls import Crawls
from worker.dev.sandbox.script import Step

LEFT = frozenset({"fulfilled", "partially_fulfilled"})
SHIPMENT = {"shipment_id": "shipment-1", "status": "shipped"}


@dataclass(frozen=True, slots=True)
class State:
    """An order at one moment; `document` lies over the sample document when it is written out."""

    status: str
    updated: float
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_left(self) -> bool:
        shipments = self.document.get("shipments") or ()
        return self.status in LEFT or any(shipment.get("status") == "shipped" for shipment in shipments)


@dataclass(slots=True)
class Request:
    """One request as it came and as it ended; `ended` is None while it is in flight.

    `end` is answered, reset, closed, hung, cut or client_gone; `status` is None when no whole answer went out.
    """

    id: str
    kind: str
    arrived: float
    key: str | None = None
    step: str = "ok"
    ended: float | None = None
    end: str = ""
    status: int | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """What really happened to one order. `max_in_flight` above 1 means that two cancels overlapped."""

    status: str
    copy_status: str | None
    effective_cancels: int
    in_flight: int
    max_in_flight: int
    keys: tuple[str, ...]
    requests: tuple[Request, ...]

    @property
    def cancels(self) -> tuple[Request, ...]:
        return tuple(request for request in self.requests if request.kind == "cancel")

    @property
    def reads(self) -> tuple[Request, ...]:
        return tuple(request for request in self.requests if request.kind != "cancel")


class Pending(NamedTuple):
    """What the warehouse has accepted and not yet done: the status to come, when, and whether it touches its time."""

    status: str
    at: float
    touches: bool | None


@dataclass(slots=True, eq=False)
class Order:
    """`number` is the world's and orders those that changed at the same instant."""

    number: int
    connection_id: str
    order_id: str
    real: State
    crawls: Crawls = field(repr=False)
    lock: Condition = field(repr=False)
    copy: State | None = None
    old_copy: State | None = None
    script: list[Step] = field(default_factory=list)
    reads: list[Step] = field(default_factory=list)
    effective_cancels: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    pending: Pending | None = None
    requests: list[Request] = field(default_factory=list)

    @property
    def truth(self) -> Truth:
        """A picture of this moment; it does not change afterwards."""
        with self.lock:
            self.refresh()
            return Truth(
                self.real.status,
                None if self.copy is None else self.copy.status,
                self.effective_cancels,
                self.in_flight,
                self.max_in_flight,
                tuple(dict.fromkeys(request.key for request in self.requests if request.key is not None)),
                tuple(replace(request) for request in self.requests),
            )

    def refresh(self) -> None:
        """Let everything happen that was due by now; each change and each look begins with it."""
        self.crawls.catch_up()

    def cancellable(self) -> bool:
        return self.real.status != "cancelled" and not self.real.has_left

    def cancel(self) -> None:
        """Cancel in the warehouse, because of a request."""
        self.change("cancelled")
        self.effective_cancels += 1

    def accept(self, status: str, seconds: float, *, touches: bool | None = None) -> None:
        """Let the warehouse do this so many seconds from now, unless something else has become of the order."""
        self.pending = Pending(status, self.crawls.now() + seconds, touches)
        self.crawls.will_change(self, self.pending.at)

    def change(
        self,
        status: str | None = None,
        document: Mapping[str, Any] | None = None,
        *,
        touches: bool | None = None,
    ) -> None:
        """Change the order in the warehouse, which touches its update time or not (None: as its connection does)."""
        self.refresh()
        self._set(self.crawls.now(), status, document, touches)
        if status is not None:
            self.pending = None

    def ship(self, status: str | None, *, touches: bool | None = None) -> None:
        self.change(status, {"shipments": [SHIPMENT]}, touches=touches)

    def settle(self) -> None:
        """Make the warehouse do now what it has accepted."""
        self.refresh()
        if self.pending is not None:
            self._do(self.pending, self.crawls.now())

    def apply_due(self, at: float) -> None:
        """Make the warehouse do what it has accepted for this instant."""
        if self.pending is not None and self.pending.at <= at:
            self._do(self.pending, at)

    def show(self, state: State) -> None:
        """Trackstar's copy becomes this state."""
        self.crawls.overtaken(self)
        if self.copy != state:
            self.crawls.move(self, self.copy, state)
            self.old_copy, self.copy = self.copy, state

    def entered(self, request: Request) -> None:
        self.requests.append(request)
        if request.kind == "cancel":
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def left(self, request: Request) -> None:
        if request.kind == "cancel":
            self.in_flight -= 1

    def _do(self, accepted: Pending, at: float) -> None:
        self.pending = None
        if not self.cancellable():
            return
        cancelled = accepted.status == "cancelled"
        self.effective_cancels += cancelled
        self._set(at, accepted.status, None if cancelled else {"shipments": [SHIPMENT]}, accepted.touches)

    def _set(self, at: float, status: str | None, document: Mapping[str, Any] | None, touches: bool | None) -> None:
        touched = self.crawls.touches if touches is None else touches
        merged = {**self.real.document, **document} if document else self.real.document
        self.real = State(status or self.real.status, at if touched else self.real.updated, merged)
        if touched:
            self.crawls.touched.add(self)
