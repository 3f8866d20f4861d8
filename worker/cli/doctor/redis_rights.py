"""What the user of REDIS_URL may do: every command of a worker, ours and Celery's, is tried, and none is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import ResponseError

from worker.streams import GROUP, INBOX, inbox_of

if TYPE_CHECKING:
    from redis import Redis

# What a worker does in Redis, ours and Celery's. Asked for inside MULTI, which is discarded: nothing is done.
_PROBE = "cancellations:probe"
_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("SCRIPT", "LOAD", "return 1"),
    ("TIME",),
    ("XADD", INBOX, "*", "job", ""),
    ("XREADGROUP", "GROUP", GROUP, "doctor", "STREAMS", INBOX, ">"),
    ("XAUTOCLAIM", INBOX, GROUP, "doctor", "1000", "0-0"),
    ("XGROUP", "CREATE", INBOX, GROUP, "0"),
    ("XINFO", "STREAM", INBOX),
    ("XRANGE", INBOX, "-", "+"),
    ("XACK", INBOX, GROUP, "0-1"),
    ("XDEL", INBOX, "0-1"),
    ("SCAN", "0"),
    ("XREADGROUP", "GROUP", GROUP, "doctor", "STREAMS", inbox_of("doctor"), ">"),
    ("XLEN", inbox_of("doctor")),
    ("GET", _PROBE),
    ("SET", _PROBE, "a"),
    ("DEL", _PROBE),
    ("HSET", _PROBE, "a", "b"),
    ("HGET", _PROBE, "a"),
    ("HMGET", _PROBE, "a"),
    ("HGETALL", _PROBE),
    ("HDEL", _PROBE, "a"),
    ("EXPIRE", _PROBE, "1"),
    ("PEXPIRE", _PROBE, "1"),
    ("TYPE", _PROBE),
    ("LINDEX", _PROBE, "0"),
    ("LPUSH", _PROBE, "a"),
    ("RPOP", _PROBE),
    ("BRPOP", _PROBE, "1"),
    ("BLMOVE", _PROBE, _PROBE, "RIGHT", "LEFT", "1"),
    ("ZRANGEBYSCORE", _PROBE, "0", "1"),
    ("ZADD", _PROBE, "1", "a"),
    ("ZREM", _PROBE, "a"),
    ("SADD", "_kombu.binding.celery", "a"),
    ("SMEMBERS", "_kombu.binding.celery"),
    ("PUBLISH", "/0.celeryev/worker.heartbeat", ""),
)


def missing_rights(redis: Redis) -> str:
    """Return what the user of REDIS_URL may not do and a worker does, as a remedy."""
    connection: Any = redis.connection_pool.get_connection()
    missing: dict[str, None] = {}
    try:
        for words in (("MULTI",), *_COMMANDS, ("DISCARD",)):
            connection.send_command(*words)
            try:
                connection.read_response()
            except ResponseError as error:
                if type(error).__name__ == "NoPermissionError":
                    missing[words[0].lower()] = None
    finally:
        redis.connection_pool.release(connection)
    grants = " ".join(f"+{name}" for name in missing)
    return f"Grant the user of REDIS_URL: {grants}, on keys and channels of every name." if missing else ""
