"""How Celery is set up, each option with its why, and the bootstep that makes a Celery worker a cancel worker.

Knows Celery; the work itself is `machinery`, what Celery runs is `tasks`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from typing import Any

from celery import bootsteps, signals

from worker import observability
from worker.envelope import QUEUE
from worker.environment import SettingsError, from_environment
from worker.inbox import connect_redis
from worker.machinery import CLAIMING_THREADS, Machinery
from worker.settings import load_worker_settings
from worker.transport import CancelApp, OwnList

SWITCH_SECONDS = 0.01
GARBAGE_THRESHOLDS = (20_000, 20, 20)

app = CancelApp("worker", broker=from_environment("REDIS_URL") or "redis://localhost:6379/0", include=["worker.tasks"])
app.conf.update(
    # The ledger is the record of what happened; a result backend would be a second, weaker one.
    result_backend=None,
    task_ignore_result=True,
    # One plain list: the default exchange needs no binding that could get lost.
    task_default_queue=QUEUE,
    task_create_missing_queues=False,
    task_queues=None,
    # JSON only: nothing that comes from Redis may be code.
    task_serializer="json",
    accept_content=["json"],
    # A message is settled when its ids are claimed: from then on the lease in the ledger keeps them.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # Threads claim and hand over; the requests run in the process's own pool (CONCURRENCY).
    worker_pool="threads",
    worker_concurrency=CLAIMING_THREADS,
    worker_prefetch_multiplier=1,
    # No error of the connection to Redis, however odd, may end the worker.
    worker_consumer="worker.transport:SteadyConsumer",
    # A running request must not be killed because Redis blinked.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Logs are ours (structlog).
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    # The worker says which cancellation is where; an event per message would say nothing and cost as much.
    worker_send_task_events=False,
    task_send_sent_event=False,
    # A Redis that is away for an hour must not end the fleet.
    broker_connection_retry_on_startup=True,
    broker_connection_retry=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    # Flower asks ten things at once on this pool, and waits for ever for a connection that is not there.
    broker_pool_limit=20,
    broker_transport_options={
        # Longer than any task, which only claims; the ledger's leases do the rest.
        "visibility_timeout": 900,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 10,  # above BRPOP's own second
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "max_connections": 100,  # the default of 10 lost a message for ever
        "client_name": "cancel-worker-celery",
    },
)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logs(**_: Any) -> None:
    settings = _settings_or_exit()
    observability.set_up_logs(settings.secrets())


class CancelMachinery(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts and stops the machinery with the Celery worker."""

    requires = ("celery.worker.components:Pool",)
    running: Machinery | None = None

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        settings = _settings_or_exit()
        owner = f"{worker.hostname}:{uuid.uuid4().hex[:8]}"
        own_list = OwnList(connect_redis(settings.redis_url), owner)
        app.amqp.queues.select_add(own_list.queue)
        observability.set_up_sentry(settings.sentry_dsn.get_secret_value(), settings.secrets())
        try:
            self._machinery = Machinery(settings, app, worker.hostname, owner, own_list.put)
        except SettingsError as error:
            raise SystemExit(f"The worker does not start: {error}") from error

    def start(self, worker: Any) -> None:  # noqa: ARG002 - Celery's shape
        signal.signal(signal.SIGQUIT, _end_at_once)
        _settle_interpreter()
        self._machinery.start()
        CancelMachinery.running = self._machinery

    def stop(self, worker: Any) -> None:  # noqa: ARG002
        if CancelMachinery.running is not None:
            CancelMachinery.running = None
            self._machinery.stop()


def _settle_interpreter() -> None:
    """Spare a hundred threads two things that the interpreter does for programs with few.

    Who waits for its turn asks for it every 5 ms, and ours give it up far sooner by themselves. And what was loaded at
    the start stays: looking through all of it for garbage, again and again, was a twentieth of the work.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _take_nothing_new(**_: Any) -> None:
    if CancelMachinery.running is not None:
        CancelMachinery.running.take_nothing_new()
    os.write(2, b"The worker takes nothing new and finishes what is in flight; asked again, it ends at once.\n")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _end_at_once)


def _end_at_once(*_: Any) -> None:
    """End now. Nothing is lost: it is what a crash would be, and the leases bring back what was under way."""
    os.write(2, b"The worker ends at once; what was in flight is taken over when its lease ends.\n")
    os._exit(1)


def _settings_or_exit() -> Any:
    try:
        return load_worker_settings()
    except SettingsError as error:
        raise SystemExit(f"The worker does not start: {error}") from error


app.steps["worker"].add(CancelMachinery)

# Whoever knows Flower's password should not be able to run tasks; set it to "false" to allow that.
os.environ.setdefault("FLOWER_READ_ONLY", "true")
if "flower" in sys.argv[1:] and not (
    os.environ.get("FLOWER_BASIC_AUTH") or any(word.startswith(("--basic", "--auth")) for word in sys.argv)
):
    raise SystemExit("Flower does not start without a password: set FLOWER_BASIC_AUTH to user:password.")
