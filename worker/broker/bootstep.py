"""The bootstep that makes a Celery worker a cancel worker: it builds, starts and ends the supervisor; and its signals.

Knows Celery's life of a worker; the work itself, `runtime` knows.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.apps import worker as celery_worker
from celery.worker.request import Request
from sentry_sdk.integrations.celery import CeleryIntegration

from worker.broker.flower import FlowerReporter
from worker.broker.remote_control import answer_for
from worker.broker.worker_queue import ATTEMPT_BATCH, WorkerQueue
from worker.ledger.vault import fingerprint
from worker.runtime.known_keys import KnownKeys
from worker.runtime.supervisor import LAST_WORD_SECONDS, Supervisor
from worker.settings import load_worker_settings
from worker.streams import connect_redis
from worker.telemetry.sentry import set_up_sentry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from worker.settings import Settings

SWITCH_SECONDS = 0.01
GARBAGE_THRESHOLDS = (20_000, 20, 20)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class UnacknowledgedRequest(Request):  # type: ignore[misc]
    """A message of a `no_ack` list: kombu would ask Redis to strike out what was never noted there."""

    def acknowledge(self) -> None:
        self.acknowledged = True


class CancelWorkerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts and stops the supervisor with the Celery worker."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        settings = settings_or_exit()
        owner = f"{worker.hostname}:{uuid.uuid4().hex[:8]}"
        redis = connect_redis(settings.redis_url)
        queue = WorkerQueue(redis, owner)
        self._known_keys = KnownKeys(redis, owner, [fingerprint(key) for key in settings.keys])
        # In a signal handler Celery writes to the descriptor itself, and blocks for ever where that pipe is full.
        celery_worker.safe_say = lambda said, *_: sys.stderr.write(f"{said}\n")
        # Celery's banner counts its own pool; `worker.started` says how many requests run at once.
        worker.quiet = True
        set_up_sentry(
            settings.sentry_dsn.get_secret_value(),
            settings.secrets(),
            integrations=[CeleryIntegration(propagate_traces=False)],
        )
        reporter = FlowerReporter(worker.app, worker.hostname)
        with _exit_with_a_sentence():
            self._supervisor = Supervisor(settings, owner, queue.put, reporter)
        # Before Celery makes its consumer, which listens to commands or does not.
        worker.app.conf.worker_enable_remote_control = settings.celery_remote_control
        answer_for(self._supervisor.executor, lambda: reporter.received)
        self._consume(worker.app, queue)

    def _consume(self, app: Celery, queue: WorkerQueue) -> None:
        """Let Celery consume this worker's own list and no other: `CeleryInbox` reads the one of the producers."""
        app.amqp.queues.select_add(queue.queue)
        app.amqp.queues.select([queue.queue.name])

        @app.task(name=ATTEMPT_BATCH, send_events=False, shared=False, Request=UnacknowledgedRequest)  # type: ignore[untyped-decorator]
        def attempt_batch(ids: list[str]) -> None:
            """Hand these claims to the request threads. Flower follows them, not this message."""
            self._supervisor.executor.run(ids)

    def start(self, worker: Any) -> None:
        # With its first task Celery looks for this through the files of all packages. Where no descriptor is left by
        # then, it ends the worker.
        _ = worker.app.backend
        signal.signal(signal.SIGQUIT, _end_at_once)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        _tune_gc_and_gil()
        with _exit_with_a_sentence():
            self._known_keys.loop.start()  # first: the supervisor takes what threads there are
            self._supervisor.start()

    def stop(self, worker: Any) -> None:  # noqa: ARG002
        self._supervisor.stop()
        self._known_keys.loop.stop(LAST_WORD_SECONDS)

    def _on_shutting_down(self, **_: Any) -> None:
        self._supervisor.take_nothing_new()
        sys.stderr.write(
            "The worker takes nothing new and finishes what is in flight; asked again, it ends at once.\n"
        )
        for number in STOP_SIGNALS:
            signal.signal(number, _end_at_once)


def _end_at_once(*_: Any) -> None:
    """End now. Nothing is lost: it is what a crash would be, and the leases bring back what was under way."""
    sys.stderr.write("The worker ends at once; what was in flight is taken over when its lease ends.\n")
    os._exit(1)


def _tune_gc_and_gil() -> None:
    """Spare a hundred threads two things that the interpreter does for programs with few.

    A thread that waits for the GIL requests it every `sys.getswitchinterval()` (5 ms). Our threads release it on I/O
    after tenths of a millisecond, so with a hundred of them those requests are only overhead. And what was loaded at
    the start stays: looking through all of it for garbage, again and again, was a twentieth of the work.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def settings_or_exit() -> Settings:
    """Read the worker's settings; exit with their sentence where they are wrong."""
    with _exit_with_a_sentence():
        return load_worker_settings()


@contextmanager
def _exit_with_a_sentence() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # of a setting, or of the ledger's address
        raise SystemExit(f"The worker does not start: {error}") from error
    except RuntimeError as error:  # what Python raises where a thread cannot be started
        raise SystemExit(
            f"The worker does not start: {error}. Let it have more threads (`pids.max`, `ulimit -u`)."
        ) from error
