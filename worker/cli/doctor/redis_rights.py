"""What the user of REDIS_URL may do: every command of a worker, ours and Celery's, is tried, and none is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import ResponseError
from redis.exceptions import NoPermissionError

from worker.streams import GROUP, INBOX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

# What a worker does in Redis, ours and Celery's. Asked for inside MULTI, which is discarded: nothing is done.
_PROBE = "cancellations:probe"
_BINDING = "_kombu.binding.cancellations"
_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("SCRIPT", "LOAD", "return 1"),
    ("SCRIPT", "EXISTS", "0" * 40),
    ("TIME",),
    ("INFO", "server"),
    ("ROLE",),
    ("SELECT", "0"),
    ("TYPE", _PROBE),
    ("EXISTS", _PROBE),
    ("DEL", _PROBE),
    ("UNLINK", _PROBE),
    ("RENAME", _PROBE, f"{_PROBE}:2"),
    ("SCAN", "0"),
    ("EXPIRE", _PROBE, "1"),
    ("PEXPIRE", _PROBE, "1"),
    ("PTTL", _PROBE),
    ("SET", _PROBE, "a"),
    ("GET", _PROBE),
    ("HGET", _PROBE, "a"),
    ("HMGET", _PROBE, "a"),
    ("HSET", _PROBE, "a", "b"),
    ("HGETALL", _PROBE),
    ("HDEL", _PROBE, "a"),
    ("HINCRBY", _PROBE, "a", "1"),
    ("HLEN", _PROBE),
    ("LPUSH", _PROBE, "a"),
    ("RPOP", _PROBE),
    ("BRPOP", _PROBE, "1"),
    ("BLMOVE", _PROBE, _PROBE, "RIGHT", "LEFT", "1"),
    ("LINDEX", _PROBE, "0"),
    ("LLEN", _PROBE),
    ("SADD", _BINDING, "a"),
    ("SREM", _BINDING, "a"),
    ("SMEMBERS", _BINDING),
    ("ZADD", _PROBE, "1", "a"),
    ("ZRANGEBYSCORE", _PROBE, "0", "1"),
    ("ZRANGE", _PROBE, "0", "1"),
    ("ZREM", _PROBE, "a"),
    ("XADD", INBOX, "*", "job", ""),
    ("XACK", INBOX, GROUP, "0-1"),
    ("XDEL", INBOX, "0-1"),
    ("XLEN", INBOX),
    ("XRANGE", INBOX, "-", "+"),
    ("XCLAIM", INBOX, GROUP, "doctor", "1000", "0-0"),
    ("XPENDING", INBOX, GROUP),
    ("XREADGROUP", "GROUP", GROUP, "doctor", "STREAMS", INBOX, ">"),
    ("XGROUP", "CREATE", INBOX, GROUP, "0"),
    ("XGROUP", "SETID", INBOX, GROUP, "0"),
    ("XGROUP", "DELCONSUMER", INBOX, GROUP, "doctor"),
    ("XGROUP", "DESTROY", INBOX, GROUP),
    ("XINFO", "STREAM", INBOX),
    ("XINFO", "GROUPS", INBOX),
    ("XINFO", "CONSUMERS", INBOX, GROUP),
    ("PUBLISH", "/0.celeryev/worker.heartbeat", ""),
)
# Of these the second word is part of the right's name.
_WITH_SUBCOMMANDS = frozenset(("SCRIPT", "XGROUP", "XINFO"))
# Keys and channels that a user of its own may have been forgotten: each is written, in vain, as a worker does.
_PLACES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("~cancellations*", ("HSET", _PROBE, "a", "b")),
    ("~cancellations*", ("LPUSH", "cancellations.probe", "a")),
    ("~unacked", ("HDEL", "unacked", "")),
    ("~unacked_index", ("ZREM", "unacked_index", "")),
    ("~unacked_mutex", ("SET", "unacked_mutex", "")),
    ("~_kombu.binding.celeryev", ("SADD", "_kombu.binding.celeryev", "")),
    ("~_kombu.binding.cancellations*", ("SADD", f"{_BINDING}.probe", "")),
    ("~_kombu.binding_deadlines", ("ZADD", "_kombu.binding_deadlines", "0", "")),
    ("&/0.celeryev/*", ("PUBLISH", "/0.celeryev/worker.heartbeat", "")),
)


def missing_rights(redis: Redis) -> str:
    """Return what the user of REDIS_URL may not do and a worker does, as a remedy. Raises RedisError."""
    connection: Any = redis.connection_pool.get_connection()
    try:
        if not _begins(connection):
            return _remedy("+multi, then ask again")
        refused = _asked(connection, [*_COMMANDS, *(words for _, words in _PLACES), ("DISCARD",)])
        # Anew, so that it cannot be what was asked for before that is executed.
        connection.disconnect()
        refused |= _asked(connection, [("EXEC",), ("CLIENT", "REPLY", "ON")])
    finally:
        connection.disconnect()
        redis.connection_pool.release(connection)
    wanted = [_right(words) for words, why in refused.items() if why == _COMMAND]
    places = [place for place, words in _PLACES if refused.get(words, _COMMAND) != _COMMAND]
    return _remedy(" ".join(dict.fromkeys([*wanted, *places])))


def _remedy(missing: str) -> str:
    return f"Grant the user of REDIS_URL: {missing} (ops/redis/users.acl has them all)." if missing else ""


_COMMAND = "a command"


def _begins(connection: Any) -> bool:
    """Begin a transaction; return whether that is allowed: without one the commands would be done."""
    connection.send_command("MULTI", check_health=False)
    try:
        connection.read_response()
    except NoPermissionError:
        return False
    return True


def _asked(connection: Any, commands: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Ask for each command; return which are refused, and whether it is the command or what it names.

    All go out at once: a connection that is made anew in between has no transaction, and would do them.
    """
    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    found = {}
    for words in commands:
        try:
            connection.read_response()
        except ResponseError as error:
            if "no permission" in str(error).lower():  # of EXEC it is told as a transaction that was aborted
                found[words] = _COMMAND if "command" in str(error) else "a key or channel"
    return found


def _right(words: tuple[str, ...]) -> str:
    name = words[0].lower()
    return f"+{name}|{words[1].lower()}" if words[0] in _WITH_SUBCOMMANDS else f"+{name}"
