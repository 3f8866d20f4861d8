"""The thread in which tries of webhooks run, all at once: a receiver that hangs costs a socket and no thread.

Begins with the first try. Knows an event loop; does not know what is sent, or what follows.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from worker.cancellation.delivery import Tried
from worker.telemetry.sentry import report_bug
from worker.webhooks.sender import Network, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.inputs.receivers import Receiver


class Tries:
    """Runs tries; each tells what became of it in its own thread, which may only put that into a queue."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def begin(self, receiver: Receiver, request: bytes, done: Callable[[Tried], None]) -> None:
        """Send a request; `done` hears of it, whatever becomes of it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="webhook-tries", daemon=True)
            self._thread.start()
        asyncio.run_coroutine_threadsafe(self._try(receiver, request, done), self._loop)

    async def _try(self, receiver: Receiver, request: bytes, done: Callable[[Tried], None]) -> None:
        try:
            tried = await send(receiver, request, self._network)
        except Exception:  # noqa: BLE001 - a bug must not leave a delivery in flight for ever
            report_bug("webhooks.try_crashed")
            tried = Tried(reason="bug", seconds=0.0)
        done(tried)

    def stop(self) -> None:
        """Cut off whatever runs; nobody hears of it any more."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
        self._loop = self._thread = None


async def _cancel_others() -> None:
    tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
