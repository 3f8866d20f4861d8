"""The client of an OMS as it is in production, but for two things: its inbox, and whose time passes while it waits."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import redis
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from worker.client import CancelClient, not_ended
from worker.streams import JOB_FIELD
from worker.testing.ledger import open_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.feed_reader import FeedEvent
    from worker.ledger.record import Cancellation
    from worker.testing.sandbox import TrackstarSandbox

LONGEST_WAIT = 2 * 86_400.0  # beyond the retry horizon: what has not ended by then is held


class SandboxClient(CancelClient):
    """What the fixture `cancel_client` is."""

    def __init__(self, sandbox: TrackstarSandbox, **options: Any) -> None:
        super().__init__("redis://sandbox.invalid", sandbox.database_url, **options)
        self._sandbox = sandbox

    @cached_property
    def _redis(self) -> Any:
        return _Inbox(self._sandbox)

    @cached_property
    def _ledger(self) -> Engine:
        engine = open_at(self._sandbox.database_url, lambda: self._sandbox.now)

        @event.listens_for(engine, "checkout")
        def _refuse(*_: Any) -> None:
            if "database" in self._sandbox.down:
                raise OperationalError("", {}, ConnectionError("connection refused"))

        return engine

    def wait(self, cancellation_id: str, timeout: float | None = None) -> Cancellation:
        """Let the sandbox's time pass until the cancellation has ended, `timeout` of its seconds at most.

        Raises TimeoutError as in production; without a `timeout` too, where nothing would ever end it.
        """
        seconds = LONGEST_WAIT if timeout is None else timeout
        self._sandbox.run(seconds, lambda: self._ended(cancellation_id) is not None)
        return self._ended(cancellation_id) or self._give_up(cancellation_id, seconds)

    def events(self, *, timeout: float | None = None, **which: Any) -> Iterator[FeedEvent]:
        """Yield what is told when `timeout` of the sandbox's seconds have passed (None: at once), and end."""
        self._sandbox.run(timeout or 0.0)
        return super().events(timeout=0.0, **which)

    def _ended(self, cancellation_id: str) -> Cancellation | None:
        found = self.get(cancellation_id)
        return found if found is not None and found.ended else None

    def _give_up(self, cancellation_id: str, seconds: float) -> Cancellation:
        raise not_ended(cancellation_id, self.get(cancellation_id), seconds)


class _Inbox:
    """As much of a Redis as a producer uses: what was added is in the ledger when it has answered."""

    def __init__(self, sandbox: TrackstarSandbox) -> None:
        self._sandbox = sandbox
        self._jobs: list[bytes] = []

    def execute_command(self, *_: Any) -> tuple[bytes, ...]:
        self._refuse()
        return (b"sentinel",)  # to ROLE: nobody has a replica

    def pipeline(self, **_: Any) -> Self:
        return type(self)(self._sandbox)

    def xadd(self, _stream: str, fields: dict[bytes, bytes]) -> None:
        self._jobs.append(fields[JOB_FIELD])

    def execute(self) -> list[bytes]:
        self._refuse()
        self._sandbox.receive(self._jobs)
        return [b"0-1"] * len(self._jobs)

    def close(self) -> None:
        pass

    def _refuse(self) -> None:
        if "redis" in self._sandbox.down:
            raise redis.ConnectionError("connection refused")
