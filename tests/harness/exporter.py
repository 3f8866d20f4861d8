"""What celery-exporter (github.com/danihodovic/celery-exporter, 0.12) makes of Celery's events, by its rules.

On the index of Python packages that name is another program's, so its contract is replayed here: through Celery's own
state of a cluster, as there. Its labels are the name, the host behind the `@`, and the queue that an event named.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.events.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

CLASS = re.compile(r"^(\w+)\(")  # of an exception as Celery tells it
OTHERS_QUEUE = "celery"  # where no event has named one


class Labels(NamedTuple):
    name: str
    host: str
    queue: str


class Exporter:
    """Its counters by type of event, its histograms as lists, its gauges by host."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        self.tasks: Counter[tuple[str, Labels]] = Counter()
        self.exceptions: Counter[str] = Counter()
        self.runtimes: defaultdict[Labels, list[float]] = defaultdict(list)
        self.waits: defaultdict[Labels, list[float]] = defaultdict(list)
        self.up: dict[str, bool] = {}
        self.active: dict[str, int] = {}
        self._state = State()
        for event in events:
            if event["type"].startswith("task-"):
                self._task(dict(event))
            elif event["type"] == "worker-heartbeat":
                self._heartbeat(dict(event))

    def _task(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        self._state.event(event)
        task = self._state.tasks[event["uuid"]]
        labels = Labels(task.name, _host(task.hostname), getattr(task, "queue", OTHERS_QUEUE))
        self.tasks[kind, labels] += 1
        if kind == "task-failed":
            found = CLASS.match(task.exception)
            self.exceptions[found[1] if found else "UnknownException"] += 1
        elif kind == "task-succeeded":
            self.runtimes[labels].append(task.runtime)
        elif kind == "task-started" and task.sent is not None:
            due = datetime.fromisoformat(task.eta).timestamp() if task.eta else 0.0
            self.waits[labels].append(max(0.0, task.started - max(task.sent, due)))

    def _heartbeat(self, event: dict[str, Any]) -> None:
        worker = self._state.event(event)[0][0]
        self.up[_host(worker.hostname)] = worker.alive
        self.active[_host(worker.hostname)] = worker.active or 0


def _host(name: str) -> str:
    return name.partition("@")[2]
