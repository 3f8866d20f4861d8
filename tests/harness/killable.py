"""A worker, or a producer, that dies at one named point: `python killable.py POINT celery -A worker worker`.

The product has no switch for this. The point is a function of the product (or of a library below it) that is wrapped
before the program starts; when it is reached for the first time, the process kills itself with SIGKILL.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec


class Point(msgspec.Struct, frozen=True):
    """Where to die: before or after a function, or with half of a Redis command sent."""

    when: str  # before | after | half
    where: str  # module:attribute.path, or for half the command's name


# What one statement writes is committed with it on PostgreSQL, and a moment later on SQLite.
POINTS = {
    "during XADD": Point("half", "XADD"),
    "after XADD": Point("after", "worker.client:put_jobs"),
    "inbox read": Point("before", "worker.intake:Intake._settle"),
    "in the ledger": Point("after", "worker.intake:accept"),
    "committed, inbox not acknowledged": Point("after", "worker.intake:Intake._commit"),
    "during the inbox acknowledgement": Point("half", "MULTI"),
    "marked queued": Point("after", "worker.ledger.turns:queue"),
    "queued, before the publish": Point("before", "worker.dispatcher:Dispatcher._send"),
    "during the publish": Point("half", "LPUSH"),
    "after the publish": Point("after", "worker.dispatcher:Dispatcher._send"),
    "message taken": Point("before", "worker.machinery:Machinery.attempt_all"),
    "before the claim": Point("before", "worker.ledger.claims:claim"),
    "claimed": Point("after", "worker.ledger.claims:claim"),
    "after the claim": Point("before", "worker.flower:FlowerReporter.claimed"),
    "before the Celery acknowledgement": Point("before", "worker.transport:Deliveries.ack"),
    "answer in hand": Point("before", "worker.recorder:Recorder.put"),
    "during the record": Point("after", "worker.ledger.recording:_keep_attempts"),
    "recorded, not committed": Point("after", "worker.ledger.recording:record"),
    "after the record": Point("before", "worker.machinery:Machinery._on_recorded"),
    "outcome committed, event not published": Point("before", "worker.publisher:Publisher._add_to_stream"),
    "event published, not noted": Point("after", "worker.publisher:Publisher._add_to_stream"),
    "retry due, not committed": Point("after", "worker.ledger.agenda:promote_due"),
    "claim of a dead worker taken over": Point("before", "worker.machinery:Machinery._rescue"),
    "read-back answered, not recorded": Point("after", "worker.attempt:_confirmed"),
}


def arm(point: Point) -> None:
    """Wrap the point so that this process dies there."""
    if point.when == "half":
        _die_within_a_command(point.where.encode())
        return
    module, _, path = point.where.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _dying(getattr(owner, name), before=point.when == "before"))


def _dying(work: Any, *, before: bool) -> Any:
    def die_there(*args: Any, **kwargs: Any) -> Any:
        if before:
            _die()
        result = work(*args, **kwargs)
        if result or result is None:  # reached with nothing to do is not reached
            _die()
        return result

    return die_there


def _die_within_a_command(name: bytes) -> None:
    from redis.connection import AbstractConnection  # noqa: PLC0415 - after the process knows its part

    send = AbstractConnection.send_packed_command

    def send_half(self: Any, command: Any, check_health: bool = True) -> None:
        data = b"".join(command) if not isinstance(command, (bytes, str)) else command
        if isinstance(data, bytes) and b"\r\n" + name + b"\r\n" in data:
            self.connect()
            self._sock.sendall(data[: len(data) // 2])
            _die()
        send(self, command, check_health=check_health)

    AbstractConnection.send_packed_command = send_half  # type: ignore[method-assign]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, named, program, *arguments = sys.argv
    arm(POINTS[named])
    sys.argv = [program, *arguments]
    if program == "celery":
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module("celery", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
