"""How Celery is set up, each option with its why. Importing it starts nothing and sets nothing.

Knows Celery; what a worker does beside, `bootstep` knows.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, signals

from worker.broker.bootstep import CancelWorkerStep, settings_or_exit
from worker.broker.flower_options import check_flower
from worker.environment import from_environment
from worker.streams import CELERY_LIST
from worker.telemetry.logs import set_up_logs

OPTIONS = {
    # The ledger is the record of what happened; a result backend would be a second, weaker one.
    "result_backend": None,
    "task_ignore_result": True,
    # Where Celery producers send to, by the default exchange: it needs no binding that could get lost.
    "task_default_queue": CELERY_LIST,
    "task_create_missing_queues": False,
    "task_queues": None,
    # JSON only: nothing that comes from Redis may be code.
    "task_serializer": "json",
    "accept_content": ["json"],
    # In the consumer's own thread: the task only hands ids over to the request threads of this process (CONCURRENCY).
    "worker_pool": "solo",
    "worker_prefetch_multiplier": 1,
    # No error of the connection to Redis, however odd, may end the worker.
    "worker_consumer": "worker.broker.consumer:SelfRestartingConsumer",
    # A running request must not be killed because Redis blinked.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # Logs are ours (structlog).
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    # The worker says which cancellation is where; an event per message would say nothing and cost as much.
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    # A Redis that is away for an hour must not end the fleet.
    "broker_connection_retry_on_startup": True,
    "broker_connection_retry": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    # Flower asks ten things at once on this pool, and waits for ever for a connection that is not there.
    "broker_pool_limit": 20,
    "broker_transport_options": {
        "socket_timeout": 10,  # above BRPOP's own second
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "max_connections": 100,  # the default of 10 lost a message for ever
        "client_name": "cancel-worker-celery",
    },
}


def make_app() -> Celery:
    """Return the app that `celery -A worker` finds."""
    made = Celery("worker", broker=from_environment("REDIS_URL") or "redis://localhost:6379/0")
    made.conf.update(OPTIONS)
    made.steps["worker"].add(CancelWorkerStep)
    signals.setup_logging.connect(_set_up_logs)
    signals.import_modules.connect(check_flower, sender=made)
    return made


def _set_up_logs(**_: Any) -> None:
    set_up_logs(settings_or_exit().secrets())


app = make_app()
