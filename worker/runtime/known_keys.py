"""Tells, in Redis, which keys and forms each running worker can decrypt, so that `rekey` locks none of them out.

Knows fingerprints; not the keys, and not what is encrypted. Who asks is a person, once in a year: it may take a scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import RedisError, ResponseError

from worker.runtime.loop import Loop
from worker.streams import GROUP, INBOX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

NAMES = "cancellations:keys:"
TELL_SECONDS = 10.0
ENDED = b"ended"
BOUND_FORM = "bound"  # told beside the keys by each release that reads what is bound to its row
FORGOTTEN_SECONDS = 60  # a worker that was not heard of for so long has died


class KnownKeys:
    """Says again and again what one worker knows, until it ends."""

    def __init__(self, redis: Redis, owner: str, fingerprints: Sequence[str]) -> None:
        self._redis = redis
        self._name = NAMES + owner
        self._told = ",".join([*fingerprints, BOUND_FORM])
        self.loop = Loop("known_keys", self._tell, expected=(RedisError, OSError), drain=self._forget)

    def _tell(self) -> float:
        self._redis.set(self._name, self._told, ex=FORGOTTEN_SECONDS)
        return TELL_SECONDS

    def _forget(self) -> None:
        # Its reading of the inbox is remembered as long.
        self._redis.set(self._name, ENDED, ex=FORGOTTEN_SECONDS)


def workers_without(redis: Any, known: str) -> list[str]:
    """Return the running workers that do not say that they know this key, or form. Raises RedisError."""
    told = {name.decode().removeprefix(NAMES): redis.get(name) for name in redis.scan_iter(f"{NAMES}*", count=1000)}
    told |= {owner: told.get(owner) for owner in _reading(redis)}
    return sorted(
        owner for owner, keys in told.items() if keys != ENDED and known not in (keys or b"").decode().split(",")
    )


def _reading(redis: Any) -> list[str]:
    """Return the workers that read the inbox; one of an older release says nothing of its keys."""
    try:
        readers = redis.xinfo_consumers(INBOX, GROUP)
    except ResponseError:
        return []  # no worker has ever read it
    return [each["name"].decode() for each in readers if each["idle"] < FORGOTTEN_SECONDS * 1000]
