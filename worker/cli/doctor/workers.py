"""What `doctor` says of the workers: who is alive and consumes, and whether something is due where nobody is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.standstill import STANDSTILL_SECONDS
from worker.cli.doctor.finding import Finding
from worker.cli.doctor.redis import asked_redis
from worker.cli.parts import opened_ledger
from worker.ledger import backlog
from worker.ledger.database import read_only
from worker.runtime.transport import what_workers_say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings import Settings


def look_at_workers(settings: Settings) -> Iterator[Finding]:
    """Say what each worker says of itself; and where none does, whether something is due."""
    try:
        said = what_workers_say(asked_redis(settings))
        with opened_ledger(settings.database_url) as ledger, read_only(ledger) as db:
            due = backlog.longest_due(db)
    except (RedisError, SQLAlchemyError):
        return  # told above
    for name, problems in sorted(said.items()):
        yield Finding(f"Worker {name}", "not ready" if problems else "ready, it consumes", " ".join(problems))
    if not said:
        late = due is not None and due.seconds > STANDSTILL_SECONDS
        waits = f", {due.connection_id} has waited for {due.seconds:.0f} s" if due and late else ""
        yield Finding("Workers", f"none has said anything for a minute{waits}", "Start one." if late else "")
