"""Which connections have something to send now, and how fast each may.

Knows what was told of and what the ledger says; does not know paces in Redis, threads or rows.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from worker.inputs.headers import MAX_RATE, MIN_RATE
from worker.ledger.database import read_only
from worker.ledger.selection import ready_connections
from worker.telemetry.health import LEDGER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from worker.ledger.selection import ReadyConnection
    from worker.telemetry.health import Vitals

# Every so often all ready connections are looked up, for what no event of this process announces: rows of producers'
# own transactions, retries that another worker promoted, connections that were resumed.
FULL_SCAN_SECONDS = 1.0
KNOWN_SECONDS = 10.0  # how late a rate that was changed while nothing was sent may be noticed


class Demand:
    """The connections with something to send, at which rate; kept up to date by events and a scan a second."""

    def __init__(self, ledger: Engine, default_rate: float, vitals: Vitals) -> None:
        self._ledger = ledger
        self._default_rate = default_rate
        self._vitals = vitals
        self._lock = threading.Lock()
        self._arrived: set[str] = set()
        self._known: dict[str, float] = {}  # rates of all that had something to send, lately
        self._scanned_at = self._learnt_at = float("-inf")
        self.rates: dict[str, float] = {}  # requests per second, of the connections that have something to send

    def arrived(self, connection_ids: Iterable[str]) -> None:
        """Note that these connections have something new to send."""
        with self._lock:
            self._arrived.update(connection_ids)

    def served(self, connection_id: str) -> None:
        """Note that this connection has nothing more to send, until it is told of again or the next scan."""
        self.rates.pop(connection_id, None)

    def refresh(self) -> dict[str, float]:
        """Learn who has something to send; return the rates of the held connections that may be probed now.

        Whose rate is known need not be looked up; if it is held by now, its rows stay where they are.
        """
        with self._lock:
            arrived, self._arrived = self._arrived, set()
        self.rates |= {name: self._known[name] for name in arrived & self._known.keys()}
        unknown = arrived - self.rates.keys()
        if time.monotonic() - self._scanned_at >= FULL_SCAN_SECONDS:
            return self._scan()
        if unknown:
            self._learn(self._found(unknown))
        return {}

    def _scan(self) -> dict[str, float]:
        found = self._found(None)
        self.rates = {}
        self._learn(found)
        now = time.monotonic()
        if now - self._learnt_at >= KNOWN_SECONDS:
            self._learnt_at, self._known = now, dict(self.rates)
        self._scanned_at = now
        return {each.connection_id: self._rate(each) for each in found if each.probing}

    def _found(self, only: set[str] | None) -> list[ReadyConnection]:
        with read_only(self._ledger) as db:
            found = ready_connections(db, sorted(only) if only is not None else None)
        self._vitals.responded(LEDGER)
        return found

    def _learn(self, found: list[ReadyConnection]) -> None:
        learnt = {each.connection_id: self._rate(each) for each in found if not each.probing}
        self.rates |= learnt
        self._known |= learnt

    def _rate(self, ready: ReadyConnection) -> float:
        rate = ready.writes_per_second
        # Whatever was written there by hand: a rate that no pace can keep is none.
        return rate if rate is not None and MIN_RATE <= rate <= MAX_RATE else self._default_rate
