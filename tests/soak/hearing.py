"""The one endpoint of a soak: its receiver hangs, refuses and cuts off now and then; and what reached it at the end.

Knows ids of events alone, or a soak of a million jobs would not fit into memory.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.hooks import ALLOWED
from harness.receiver import RESET, Answer, Received, Receiver
from standardwebhooks import WebhookVerificationError

from worker.cancellation.event import OF_ENDPOINTS
from worker.ledger import endpoints
from worker.ledger.database import read_only
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment

    from worker.ledger.vault import TokenVault

SETTINGS = ALLOWED
MISHAPS = ("500", "500", "503", "429", "reset", "reset", "hang")
MISHAP_SECONDS = (1.0, 5.0)  # between two of them
HANG_SECONDS = 20.0  # longer than a try lasts
CUT_SECONDS = 5.0  # in which the client of this process has a new connection, where a fault has cut the one it had
QUIET_SECONDS = 120.0  # nothing comes for so long: above the lease of a worker that was killed, and a try


class Hearing(Receiver):
    """What an OMS would have at the end of a soak."""

    def __init__(self, seed: int) -> None:
        super().__init__(self._answer)
        self.struck = Counter[str]()
        self.found: list[str] = []  # promises that were broken when it came
        self.again = 0  # what had come before
        self._secret = new_secret()
        self._dice = random.Random(f"receiver {seed}")
        self._mishap_at = time.monotonic()
        self._came_at = time.monotonic()
        self._well = threading.Event()
        self._numbers: set[int] = set()
        self._last: dict[str, int] = {}  # number of the last event, by cancellation
        self._released: set[tuple[str, str]] = set()  # orders
        self._lock = threading.Lock()
        self._endpoint = ""

    def add(self, deployment: Deployment, vault: TokenVault) -> None:
        """Have all events of a deployment sent here."""
        with deployment.ledger.begin() as db:
            self._endpoint = endpoints.add(db, self.url, vault.encrypt(self._secret))

    def keep(self, received: Received) -> None:
        """Note what has come, whether it is believed, and whether it is in order."""
        try:
            event = received.verified(self._secret)["data"]
        except WebhookVerificationError:
            self.found.append(f"{received.id}: is not signed")
            return
        with self._lock:
            self._came_at = time.monotonic()
            self._note(_number(event["id"]), event)

    def _note(self, number: int, event: dict[str, Any]) -> None:
        if (about := event.get("cancellation_id")) is not None:
            if number < self._last.get(about, 0):
                self.found.append(f"{about}: its events reached the endpoint in another order")
            self._last[about] = number
        self.again += number in self._numbers
        if event["type"] == "refund.released" and number not in self._numbers:
            order = event["connection_id"], event["order_id"]
            if order in self._released:
                self.found.append(f"{order[1]}: its refund was released twice to the endpoint")
            self._released.add(order)
        self._numbers.add(number)

    def _answer(self, _: Received) -> Answer:
        with self._lock:
            if self._well.is_set() or time.monotonic() < self._mishap_at:
                return 204, {}
            self._mishap_at = time.monotonic() + self._dice.uniform(*MISHAP_SECONDS)
            mishap = self._dice.choice(MISHAPS)
            self.struck[f"the receiver: {mishap}"] += 1
        if mishap == "hang":
            self._well.wait(HANG_SECONDS)
        return RESET if mishap in {"reset", "hang"} else (int(mishap), {"Retry-After": "1"})

    def untruths(self, deployment: Deployment) -> Iterator[str]:
        """Be well from now on, wait for what is still to come, and yield a sentence for each broken promise."""
        self._well.set()
        with deployment.ledger.begin() as db:  # as a person does whose receiver is well again
            endpoints.resume(db, self._endpoint)
        told = [each.event for each in deployment.client.events(timeout=CUT_SECONDS)]
        wanted = {_number(each.id): each for each in told if each.type not in OF_ENDPOINTS}
        self._came_at = time.monotonic()
        while not wanted.keys() <= self._numbers and time.monotonic() < self._came_at + QUIET_SECONDS:
            time.sleep(0.2)  # what is missing then is told
        yield from self.found
        yield from (f"{wanted[each].id}: did not reach the endpoint" for each in wanted.keys() - self._numbers)
        yield from (f"{each}: reached the endpoint, and is not in the feed" for each in self._numbers - wanted.keys())
        with read_only(deployment.ledger) as db:
            row = endpoints.known(db, self._endpoint)
        if (row.state, row.set_aside) != ("active", 0):
            yield f"the endpoint: is {row.state}, with {row.set_aside} events set aside"

    @property
    def count(self) -> int:
        return len(self._numbers)


def _number(id_: str) -> int:
    return int(id_.split("_")[1])
