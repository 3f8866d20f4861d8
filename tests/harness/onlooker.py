"""Celery's own event receiver, as Flower is one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from celery import Celery


class Onlooker:
    """Keeps what it receives."""

    def __init__(self, app: Celery) -> None:
        self.seen: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._app = app
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)

    def wait_for(self, kind: str, timeout: float = 30.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(event["type"] == kind for event in self.seen), timeout), kind

    def _watch(self) -> None:
        with self._app.connection_for_read() as connection:
            # One subscription to the end: between two, events would be missed.
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self._note})
            self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _note(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()
