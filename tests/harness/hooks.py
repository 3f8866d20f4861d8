"""Endpoints of a deployment at one receiver, and what reached each of them compared with the feed."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

from standardwebhooks import WebhookVerificationError

from worker.cancellation.event import OF_ENDPOINTS, CancellationEvent
from worker.ledger import endpoints
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.deployment import Deployment
    from harness.receiver import Received, Receiver
    from worker.cancellation.event import Event
    from worker.ledger.vault import TokenVault

MONEY = ("refund.released", "refund.refused", "refund.recalled")
ALLOWED = {"WEBHOOK_ALLOW_PRIVATE": "true"}  # of workers: receivers are on this machine
# A worker that dies leaves its endpoints to others within a lease of 45 s.
ARRIVED_SECONDS = 75.0


class Hook:
    """One endpoint: what it asked for, and what of the feed reached it."""

    def __init__(self, receiver: Receiver, path: str, types: Sequence[str] | None = None) -> None:
        self.url, self.types = f"{receiver.url}{path}", types
        self.secret = new_secret()
        self._receiver, self._path = receiver, f"/hook{path}"

    @property
    def received(self) -> list[Received]:
        return [each for each in list(self._receiver.received) if each.path == self._path]

    def wants(self, event: Event) -> bool:
        return event.type in self.types if self.types else event.type not in OF_ENDPOINTS

    def missing(self, feed: Sequence[Event]) -> set[str]:
        return {each.id for each in feed if self.wants(each)} - {each.id for each in self.received}

    def untruths(self, feed: Sequence[Event], most: int | None) -> list[str]:
        """Return a sentence for each broken promise; `most`: how often one event may have come, None for any."""
        wanted, received = [each for each in feed if self.wants(each)], self.received
        came = Counter(each.id for each in received)
        found = [f"{self.url}: {id_} never came" for id_ in self.missing(feed)]
        found += [f"{self.url}: {id_} is not in the feed" for id_ in came.keys() - {each.id for each in wanted}]
        found += [f"{self.url}: {id_} came {count} times" for id_, count in came.items() if most and count > most]
        found += [f"{self.url}: {each.id} is not signed" for each in received if not self._is_signed(each)]
        told = _by_cancellation([(each.cancellation_id, each.id) for each in _of_cancellations(wanted)])
        heard = _by_cancellation([(each.event.get("cancellation_id"), each.id) for each in received])
        # What came once more came before the next one of its cancellation.
        return found + [f"{self.url}: {key} in another order" for key in told if heard[key] != told[key]]

    def _is_signed(self, received: Received) -> bool:
        with suppress(WebhookVerificationError):
            return bool(received.verified(self.secret))
        return False


def _of_cancellations(events: Sequence[Event]) -> list[CancellationEvent]:
    return [each for each in events if isinstance(each, CancellationEvent)]


def _by_cancellation(pairs: Sequence[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Return the ids of events by cancellation, in their order; what comes twice in a row counts once."""
    ids: dict[str, list[str]] = defaultdict(list)
    for cancellation, id_ in pairs:
        ids[cancellation or ""].append(id_)
    return defaultdict(list, {key: [id_ for id_, _ in groupby(each)] for key, each in ids.items()})


class Hooks:
    """Two endpoints, one that wants everything and one that wants what money hangs on."""

    def __init__(self, deployment: Deployment, vault: TokenVault, receiver: Receiver) -> None:
        self._deployment = deployment
        self._hooks = [Hook(receiver, "/all"), Hook(receiver, "/money", MONEY)]
        with deployment.ledger.begin() as db:
            for each in self._hooks:
                endpoints.add(db, each.url, vault.encrypt(each.secret), types=each.types)

    def untruths(self, most: int | None = None) -> list[str]:
        """Wait until all of the feed has reached both; return a sentence for each broken promise."""
        feed = [each.event for each in self._deployment.client.events(timeout=0.0)]
        with suppress(AssertionError):  # what is missing then is told
            self._deployment.wait_until(
                lambda: not any(each.missing(feed) for each in self._hooks), "each endpoint's events", ARRIVED_SECONDS
            )
        return [sentence for each in self._hooks for sentence in each.untruths(feed, most)]
