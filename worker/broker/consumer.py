"""A Celery consumer that no error ends and that no other worker is heard by.

Knows Celery's consumer; does not know what it consumes.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import Any

import structlog
from celery.exceptions import WorkerTerminate
from celery.worker.consumer.consumer import STOP_CONDITIONS, Consumer

log = structlog.get_logger()

RESTART_SECONDS = 1.0
# Celery's workers listen to each other's events, by which one can be told to run a task. Ours meet in the ledger.
ALONE = {"without_gossip": True, "without_mingle": True}


class SelfRestartingConsumer(Consumer):  # type: ignore[misc]
    """Celery goes on after the errors that it knows; this one also after those that it does not expect.

    As when a broken connection breaks once more while it is being closed: that would end the whole worker.
    """

    _restarted = -RESTART_SECONDS

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, worker_options={**(worker_options or {}), **ALONE}, **kwargs)

    def start(self) -> None:
        while True:
            try:
                super().start()
            except (Exception, WorkerTerminate) as error:
                if self.blueprint.state in STOP_CONDITIONS or not _may_pass(error):
                    raise
                log.exception("consumer.restarted", error=type(error).__name__)
                with suppress(Exception):  # what is half broken may not be possible to close
                    self.on_close()
                self.blueprint.restart(self)
                self._pause()
            else:
                return

    def on_connection_error_before_connected(self, exc: Any) -> None:
        super().on_connection_error_before_connected(exc)
        self._pause()

    def on_connection_error_after_connected(self, exc: Any) -> None:
        super().on_connection_error_after_connected(exc)
        self._pause()

    def _pause(self) -> None:
        """Let at least a second lie between two restarts.

        Celery itself pauses only after five in one second, which a busy machine never reaches: it spins without end.
        """
        time.sleep(max(0.0, self._restarted + RESTART_SECONDS - time.monotonic()))
        self._restarted = time.monotonic()


def _may_pass(error: BaseException) -> bool:
    """Whether to go on. Celery ends the worker where it lacks a descriptor: a moment later it may have one."""
    if isinstance(error, WorkerTerminate):
        return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EMFILE
    return True
