"""A worker, or a producer, that a signal meets at one named point.

    python killable.py SIGKILL "before the request" celery -A worker worker

The product has no switch for this. The point is a function of the product (or of a library below it) that is wrapped
before the program starts; when it is reached for the first time, the process sends itself the signal. After SIGSTOP
and SIGCONT it goes on as if nothing had been wrapped.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec


class Point(msgspec.Struct, frozen=True):
    """Where the signal comes: before or after a function, or when half of a Redis command is sent."""

    when: str  # before | after | half
    where: str  # module:attribute.path, or for half the command's name


# What one statement writes is committed with it on PostgreSQL, and a moment later on SQLite.
POINTS = {
    "during XADD": Point("half", "XADD"),
    "after XADD": Point("after", "worker.client:put_jobs"),
    "Celery message arrived, not on the inbox": Point("after", "worker.runtime.celery_inbox:CeleryInbox._wait"),
    "Celery message on the inbox": Point("after", "worker.runtime.celery_inbox:CeleryInbox.move"),
    "inbox read": Point("before", "worker.runtime.acceptance:Acceptance.take_in"),
    "in the ledger": Point("after", "worker.ledger.transitions:accept"),
    "committed, inbox not acknowledged": Point("after", "worker.runtime.acceptance:Acceptance._commit"),
    "during the inbox acknowledgement": Point("half", "MULTI"),
    "before the claim": Point("before", "worker.ledger.transitions:claim_next"),
    "claimed": Point("after", "worker.ledger.transitions:claim_next"),
    "claimed, before the publish": Point("before", "worker.runtime.dispatcher:Dispatcher._hand_out"),
    "during the publish": Point("half", "LPUSH"),
    "after the publish": Point("after", "worker.runtime.dispatcher:Dispatcher._hand_out"),
    "message taken": Point("before", "worker.runtime.executor:Executor.run"),
    "before the request": Point("before", "worker.trackstar.client:TrackstarClient.cancel"),
    "before the Celery acknowledgement": Point("before", "worker.broker.bootstep:UnacknowledgedRequest.acknowledge"),
    "answer in hand": Point("before", "worker.runtime.recorder:Recorder.put"),
    "during the record": Point("after", "worker.ledger.results:keep_attempts"),
    "refund noted, not committed": Point("after", "worker.ledger.results:refund_events"),
    "recorded, not committed": Point("after", "worker.runtime.recorder:commit_results"),
    "after the record": Point("before", "worker.runtime.supervisor:Supervisor._on_committed"),
    "outcome committed, event not published": Point("before", "worker.runtime.relay:Relay._add_to_stream"),
    "event published, not noted": Point("after", "worker.runtime.relay:Relay._add_to_stream"),
    "retry due, not committed": Point("after", "worker.ledger.transitions:promote_due"),
    "claim of a dead worker taken over": Point("before", "worker.runtime.executor:Executor.rescue"),
    "read-back answered, not recorded": Point("after", "worker.runtime.executor:confirm"),
    "deliveries written, not committed": Point("after", "worker.ledger.deliveries:_write_deliveries"),
    "deliveries committed, not sent": Point("before", "worker.runtime.webhooks:Webhooks._begin"),
    "webhook sent, not answered": Point("before", "worker.webhooks.sender:_head"),
    "webhook answered, not noted": Point("before", "worker.runtime.webhooks:Webhooks._finished"),
    "webhook noted, not committed": Point("after", "worker.ledger.delivery_notes:drop"),
    "webhook noted, the next not sent": Point("before", "worker.telemetry.metrics:Metrics.webhook"),
}
ENDPOINT_LEASE_SECONDS = 2.0  # instead of 45: so long after a death its endpoints wait for another worker


def resolve(point: Point) -> tuple[Any, str]:
    """Return the module or class that holds the function of a point, and the function's name there."""
    module, _, path = point.where.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def arm(point: Point, number: signal.Signals) -> None:
    """Wrap the point so that this process meets the signal there."""
    if point.when == "half":
        _signal_within_a_command(point.where.encode(), number)
        return
    owner, name = resolve(point)
    setattr(owner, name, _signalling(getattr(owner, name), number, before=point.when == "before"))


def _signalling(work: Any, number: signal.Signals, *, before: bool) -> Any:
    reached: list[bool] = []

    def reach() -> None:
        if not reached:
            reached.append(True)
            _send(number)

    def work_and_signal(*args: Any, **kwargs: Any) -> Any:
        if before:
            reach()
        result = work(*args, **kwargs)
        if not before and (result or result is None):  # what was called and found nothing to do does not count
            reach()
        return result

    return work_and_signal


def _signal_within_a_command(name: bytes, number: signal.Signals) -> None:
    from redis.connection import AbstractConnection  # noqa: PLC0415 - only this kind of point needs it

    connection: Any = AbstractConnection
    send = connection.send_packed_command

    def send_half(self: Any, command: Any, check_health: bool = True) -> None:
        data = b"".join(command) if not isinstance(command, (bytes, str)) else command
        if isinstance(data, bytes) and b"\r\n" + name + b"\r\n" in data:
            self.connect()
            self._sock.sendall(data[: len(data) // 2])
            _send(number)
        send(self, command, check_health=check_health)

    connection.send_packed_command = send_half


def _send(number: signal.Signals) -> None:
    # To this thread: sent to the process, another thread would take SIGSTOP, and this one run on until that happens.
    signal.pthread_kill(threading.get_ident(), number)


if __name__ == "__main__":
    _, sent, named, program, *arguments = sys.argv
    arm(POINTS[named], signal.Signals[sent])
    sys.argv = [program, *arguments]
    if program == "celery":
        turn: Any = import_module("worker.runtime.webhook_turn")
        turn.LEASE_SECONDS = ENDPOINT_LEASE_SECONDS
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module("celery", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
