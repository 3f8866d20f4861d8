"""One order: what it really is, what Trackstar's copy says, and all that was asked about it.

Knows nothing of tokens, scripts' meaning or HTTP. Every change goes through `Order`; the caller holds the lock.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Calendar:
    """The clock, and the moments at which Trackstar renews its copies."""

    now: Callable[[], float]
    start: float
    sync_seconds: float

    def last_sync(self, at: float) -> float:
        if not self.sync_seconds:
            return at
        return self.start + math.floor((at - self.start) / self.sync_seconds) * self.sync_seconds


@dataclass(slots=True, eq=False)
class Order:
    connection_id: str
    order_id: str
    real: State
    copy: State | None
    calendar: Calendar = field(repr=False)
    lock: Condition = field(repr=False)
    old_copy: State | None = None
    copied_at: float = 0.0
    script: list[Step] = field(default_factory=list)
    reads: list[Step] = field(default_factory=list)
    effective_cancels: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    # What the warehouse has accepted and not yet done: the status to come, and when.
    pending: tuple[str, float] | None = None
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
        now = self.calendar.now()
        if self.pending is not None and self.pending[1] <= now:
            self._do_accepted(max(self.pending[1], self.real.updated))
        self._catch_up(now)

    def cancellable(self) -> bool:
        return self.real.status != "cancelled" and not self.real.has_left

    def cancel(self) -> None:
        """Cancel in the warehouse, because of a request."""
        self.change("cancelled")
        self.effective_cancels += 1

    def change(self, status: str | None = None, document: Mapping[str, Any] | None = None) -> None:
        """Change the order in the warehouse; Trackstar's copy does not know it yet."""
        self.refresh()
        self._set(self.calendar.now(), status, document)
        if status is not None:
            self.pending = None

    def ship(self, status: str | None) -> None:
        self.change(status, {"shipments": [SHIPMENT]})

    def settle(self) -> None:
        """Make the warehouse do now what it has accepted."""
        self.refresh()
        if self.pending is not None:
            self._do_accepted(self.calendar.now())

    def show(self, state: State) -> None:
        """Trackstar's copy becomes this state."""
        if self.copy != state:
            self.old_copy, self.copy = self.copy, state
        self.copied_at = self.calendar.now()

    def entered(self, request: Request) -> None:
        self.requests.append(request)
        if request.kind == "cancel":
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def left(self, request: Request) -> None:
        if request.kind == "cancel":
            self.in_flight -= 1

    def _do_accepted(self, at: float) -> None:
        assert self.pending is not None  # noqa: S101 - both callers have looked
        status, _ = self.pending
        self.pending = None
        self._catch_up(at)
        if not self.cancellable():
            return
        if status == "cancelled":
            self.effective_cancels += 1
            self._set(at, status, None)
        else:
            self._set(at, status, {"shipments": [SHIPMENT]})

    def _catch_up(self, at: float) -> None:
        # Nothing changes without catching up first, so the real state is still what it was at the last sync.
        last = self.calendar.last_sync(at)
        if self.copied_at < last:
            if self.copy != self.real:
                self.old_copy, self.copy = self.copy, self.real
            self.copied_at = last

    def _set(self, at: float, status: str | None, document: Mapping[str, Any] | None) -> None:
        merged = {**self.real.document, **document} if document else self.real.document
        self.real = State(status or self.real.status, at, merged)
