"""Hints from outside: the next read of an order, or of a connection, is moved to now. Nothing is believed from one.

Every worker reads the stream; to follow a hint twice is harmless. Knows the stream; what moves, `ledger.hints` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.inputs.hints import MAX_HINT_BYTES, read_hint
from worker.ledger.hints import look_again
from worker.runtime.loop import Loop
from worker.streams import HINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from sqlalchemy import Engine

log = structlog.get_logger()

POLL_SECONDS = 1.0
BATCH = 200

# Entries are measured where they lie; of one that is too long only its id leaves Redis. A key of another type goes.
_TAKE = """
local found = redis.pcall('XRANGE', KEYS[1], '-', '+', 'COUNT', tonumber(ARGV[1]))
if found.err then
  redis.call('UNLINK', KEYS[1])
  return {}
end
for _, entry in ipairs(found) do
  local size = 0
  for _, part in ipairs(entry[2]) do size = size + #part end
  if size > tonumber(ARGV[2]) then entry[2] = {} end
end
return found
"""


class Hints:
    """One thread that follows hints."""

    def __init__(self, redis: Redis, ledger: Engine, on_moved: Callable[[], None]) -> None:
        self._redis: Any = redis
        self._ledger = ledger
        self._on_moved = on_moved
        self._take = redis.register_script(_TAKE)
        self.loop = Loop("hints", self._tick, expected=(RedisError, SQLAlchemyError, OSError))

    def _tick(self) -> float:
        entries = self._take(keys=[HINTS], args=[BATCH, MAX_HINT_BYTES])
        if not entries:
            return POLL_SECONDS
        read = [read_hint(dict(zip(flat[::2], flat[1::2], strict=True))) for _, flat in entries]
        # In one order for all workers, or two of them could wait for one another.
        hints = sorted({hint for hint in read if hint is not None}, key=repr)
        with self._ledger.begin() as db:
            moved = sum(look_again(db, hint.connection_id, hint.order_id) for hint in hints)
        self._redis.xdel(HINTS, *(entry_id for entry_id, _ in entries))  # once they are followed
        if moved:
            self._on_moved()
        if ignored := read.count(None):
            log.warning("hints.ignored", count=ignored)
        return 0.0 if len(entries) == BATCH else POLL_SECONDS
