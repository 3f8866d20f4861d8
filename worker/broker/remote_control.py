"""What this worker answers Celery's own tools: `celery inspect`, Flower's page of a worker, celery-exporter's scrape.

Only where CELERY_REMOTE_CONTROL is on; without it nothing listens. By itself Celery would speak of the messages by
which a worker hands work out to itself. Here a task is a cancellation, in Celery's forms. A command only asks: whoever
may publish in Redis can send one, so what would change or end a worker is refused, with what does it instead.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import control, heartbeat
from celery.worker.control import Panel
from kombu.entity import Exchange, Queue

from worker.broker.flower import TASK_NAME
from worker.cancellation.celery_message import CANCEL_ORDER
from worker.streams import CELERY_LIST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.ledger.claims import AttemptClaim
    from worker.runtime.executor import Executor

WITHDRAW = "A cancellation is taken back by `cancel-worker withdraw`."
THREADS = "How many requests run at once is set by CONCURRENCY, at the next start."
INSTEAD = {
    **dict.fromkeys(("revoke", "revoke_by_stamped_headers", "terminate"), WITHDRAW),
    **dict.fromkeys(("pool_grow", "pool_shrink", "pool_restart", "autoscale"), THREADS),
    "rate_limit": "The pace of a connection is set by `cancel-worker connections set`.",
    "time_limit": "The times of a request are set by CONNECT_TIMEOUT_SECONDS and REQUEST_TIMEOUT_SECONDS.",
    "shutdown": "A worker is ended by a signal: SIGTERM.",
    **dict.fromkeys(("add_consumer", "cancel_consumer"), "A worker consumes its own list, and no other."),
}
REFUSED = "A worker is asked by remote commands, and not told."
# What changes nothing. A newer Celery may know other commands: those are refused until they are looked at.
ASKING = {
    *("active", "active_queues", "clock", "conf", "ping", "query_task", "registered", "report", "reserved", "revoked"),
    *("scheduled", "stats"),
    *("dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks"),
    # Flower sends the first again and again. They say which events Celery sends, and it has none of tasks here.
    *("enable_events", "disable_events", "heartbeat"),
}
OLD_NAMES = {"active": "dump_active", "reserved": "dump_reserved", "registered": "dump_tasks"}
# How Redis is reached stands in `inspect conf`. Here it would be an object that no answer can hold: there were none.
UNTOLD = frozenset(("transport_options", "ssl", "login_method", "credential_provider", "alternates"))


def answer_for(executor: Executor, received: Callable[[], int]) -> None:
    """Let Celery's commands speak, in this process, of what this executor has in hand.

    `received` says how many cancellations this process has begun to attempt.
    """
    answers = _Answers(executor, received)
    for name in ("active", "reserved", "query_task", "registered", "stats", "active_queues"):
        Panel.data[name] = Panel.data[OLD_NAMES.get(name, name)] = getattr(answers, name)
    told = Panel.data.keys() - ASKING
    Panel.data |= {name: partial(_refuse, INSTEAD.get(name, REFUSED)) for name in told}
    # Flower and celery-exporter read these two in each heartbeat.
    heartbeat.active_requests = _Count(lambda: len(executor.running()))
    heartbeat.all_total_count = _Count(received)


class _Count:
    """A number, for who takes the length of a set, or the first of a list."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count()

    def __getitem__(self, _: int) -> int:
        return self._count()


def _refuse(instead: str, state: Any, **_: Any) -> dict[str, str]:  # noqa: ARG001 - Celery's shape
    return {"error": instead}


class _Answers:
    """Each method answers the command of its name; `state` is Celery's."""

    def __init__(self, executor: Executor, received: Callable[[], int]) -> None:
        self._executor = executor
        self._received = received

    def active(self, state: Any, **_: Any) -> list[dict[str, Any]]:
        return [_task(state, claim, since) for claim, since in self._executor.running()]

    def reserved(self, state: Any, **_: Any) -> list[dict[str, Any]]:
        return [_task(state, claim, None) for claim in self._executor.reserved()]

    def query_task(self, state: Any, ids: Iterable[str] | str, **_: Any) -> dict[str, Any]:
        wanted = {ids} if isinstance(ids, str) else set(ids)
        found = {"reserved": self.reserved(state), "active": self.active(state)}
        return {task["id"]: (word, task) for word, tasks in found.items() for task in tasks if task["id"] in wanted}

    def registered(self, state: Any, **asked: Any) -> list[str]:
        """Name also the task that producers send, which no Celery worker runs: it is moved to the inbox."""
        return [*control.registered(state, **asked), CANCEL_ORDER]

    def stats(self, state: Any, **_: Any) -> dict[str, Any]:
        said = control.stats(state)
        threads, used = self._executor.threads, len(self._executor.running())
        pool = {"implementation": "request threads", "max-concurrency": threads, "processes": [os.getpid()]}
        return {
            **said,
            "total": {TASK_NAME: self._received()},
            "pool": {**pool, "used": used, "free": threads - used},
            "broker": {name: value for name, value in said["broker"].items() if name not in UNTOLD},
        }

    def active_queues(self, state: Any, **_: Any) -> list[dict[str, Any]]:  # noqa: ARG002 - Celery's shape
        """Name the list of the producers. A worker's own has another name after each start: a series without end."""
        producers: Any = Queue(CELERY_LIST, Exchange(""), routing_key=CELERY_LIST)  # type: ignore[no-untyped-call]
        return [producers.as_dict(recurse=True)]


def _task(state: Any, claim: AttemptClaim, since: float | None) -> dict[str, Any]:
    redelivered = claim.lease.token > 1
    return {
        "id": claim.id,
        "name": TASK_NAME,
        "args": [claim.connection_id, claim.order_id],
        "kwargs": {},
        "type": TASK_NAME,
        "hostname": state.hostname,
        "time_start": since,
        "acknowledged": True,
        "delivery_info": {"routing_key": CELERY_LIST, "priority": claim.priority, "redelivered": redelivered},
        "worker_pid": os.getpid(),
    }
