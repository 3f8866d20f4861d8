"""How Celery is set up, each option with its why. Importing it starts nothing and sets nothing.

Knows Celery; what a worker does beside, `bootstep` knows.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from worker.broker.bootstep import CancelWorkerStep, settings_or_exit
from worker.broker.flower_options import prepare_flower
from worker.broker.transport import RedisAMQP, celery_address
from worker.environment import from_environment
from worker.inputs.addresses import parse_redis_url
from worker.streams import CELERY_LIST, redis_options
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
    # Whoever may publish in Redis could command the workers: CELERY_REMOTE_CONTROL lets them answer questions.
    "worker_enable_remote_control": False,
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
}


def make_app() -> Celery:
    """Return the app that `celery -A worker` finds. Raises SystemExit, with a sentence, for a wrong REDIS_URL."""
    made = Celery("worker", amqp=RedisAMQP)
    made.conf.update(OPTIONS, **_broker())
    made.steps["worker"].add(CancelWorkerStep)
    signals.setup_logging.connect(_set_up_logs)
    signals.celeryd_init.connect(_say_nothing_of_root)
    return made


def _broker() -> dict[str, Any]:
    try:
        url = from_environment("REDIS_URL") or "redis://localhost:6379/0"
        return celery_address(parse_redis_url(url), redis_options(url, "cancel-worker-celery"))
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _set_up_logs(**_: Any) -> None:
    set_up_logs(settings_or_exit().secrets())


def _say_nothing_of_root(**_: Any) -> None:
    """Celery takes a group without a name, or `wheel`, for root, and warns of pickle: there is none here."""
    if os.geteuid() != 0:
        warnings.filterwarnings("ignore", message=r"\s*An entry for the specified gid", category=SecurityWarning)
        warnings.filterwarnings("ignore", message=r"\s*You're running the worker with superuser privileges")


app = make_app()
prepare_flower(app)
