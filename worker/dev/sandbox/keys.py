"""Idempotency keys of one connection, as Trackstar documents them. Time comes in as an argument."""

from dataclasses import dataclass

from worker.dev.sandbox.orders import State

KEPT_SECONDS = 24 * 3600
RUNNING_SECONDS = 15 * 60
MAX_LENGTH = 255


@dataclass(slots=True)
class KeyUse:
    """One request under a key: still running while `stored` is None, succeeded once it holds what was answered."""

    intent: tuple[str, ...]
    first_at: float
    stored: State | None = None

    def over(self, now: float) -> bool:
        return now - self.first_at >= (RUNNING_SECONDS if self.stored is None else KEPT_SECONDS)


class Keys:
    __slots__ = ("_uses",)

    def __init__(self) -> None:
        self._uses: dict[str, KeyUse] = {}

    def find(self, key: str, now: float) -> KeyUse | None:
        use = self._uses.get(key)
        return None if use is None or use.over(now) else use

    def begin(self, key: str, intent: tuple[str, ...], now: float) -> KeyUse:
        use = KeyUse(intent, now)
        self._uses[key] = use
        return use

    def release(self, key: str, use: KeyUse) -> None:
        """Forget a request that did not succeed, unless the key has passed to another one since."""
        if use.stored is None and self._uses.get(key) is use:
            del self._uses[key]
