"""What `doctor` says of Redis: the server, our user's rights, its clock, and the inbox. Knows no ledger."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from redis import RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.cancellation.producer import MAX_PRODUCERS, problem_of_producer
from worker.cancellation.standstill import STANDSTILL_SECONDS
from worker.cli.doctor.asking import PATIENCE_SECONDS
from worker.cli.doctor.clock import clock_finding
from worker.cli.doctor.finding import Finding
from worker.cli.doctor.redis_rights import missing_rights
from worker.cli.words import in_bytes, in_time
from worker.inputs.addresses import parse_redis_url
from worker.inputs.faults import fault, remedy_of, word_of
from worker.runtime.transport import Transport
from worker.streams import INBOX, connect_redis, producer_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.runtime.transport import InboxLook
    from worker.settings import Settings

OLDEST_REDIS = (6, 2)
AHEAD_SECONDS = 60.0  # ids of a stream rise for ever: once ahead of the clock, they stay so
LATE_SECONDS = 10.0  # an entry of the inbox is taken within milliseconds
LOW, VERY_LOW = 0.2, 0.05  # of the memory that Redis may use: so much is left


def asked_redis(settings: Settings) -> Any:
    """Return a client that is not patient, and tries once."""
    redis = connect_redis(settings.redis_url, socket_timeout=PATIENCE_SECONDS)
    redis.set_retry(Retry(NoBackoff(), 0))
    return redis


def look_at_redis(settings: Settings) -> Iterator[Finding]:
    """Look at the server, at what our user may do there, and at the inbox."""
    redis = asked_redis(settings)
    try:
        redis.ping()
    except RedisError as error:
        yield Finding("Redis", word_of(error), f"{remedy_of(error) or _unreached(settings)}.")
        return
    try:
        yield from _server(redis)
        missing = missing_rights(redis)
        yield Finding("Redis", f"rights {'missing' if missing else 'complete'}", missing)
        yield from _inboxes(redis)
        yield _clock(redis)
    except RedisError as error:
        yield Finding("Redis", fault(error), "Correct this; until then no job can be taken or sent.")


def _unreached(settings: Settings) -> str:
    # From TLS 1.3 on a server that wants a certificate may only end the connection.
    tls = parse_redis_url(settings.redis_url).tls
    asks = ". If it asks for a certificate: ssl_certfile and ssl_keyfile in REDIS_URL name ours" if tls else ""
    return f"Start it, or correct REDIS_URL{asks}"


def _server(redis: Any) -> Iterator[Finding]:
    try:
        server, kept, memory = (redis.info(section) for section in ("server", "persistence", "memory"))
    except ResponseError:
        return  # no right to ask: nothing that a worker needs
    version = tuple(int(part) for part in server["redis_version"].split(".")[:2])
    old = "" if version >= OLDEST_REDIS else "Upgrade to 6.2 or newer."
    # Valkey tells as `redis_version` the Redis that it stands in for.
    valkey = f" (Valkey {server['valkey_version']})" if "valkey_version" in server else ""
    yield Finding("Redis", f"version {server['redis_version']}{valkey}", old)
    aof = "" if kept.get("aof_enabled") else "Set `appendonly yes`: without it a restart loses accepted jobs."
    yield Finding("Redis", f"append-only file {'on' if not aof else 'off'}", aof)
    yield _memory(memory)
    policy = memory.get("maxmemory_policy")
    evicts = "Set `maxmemory-policy noeviction`: any other may drop jobs in silence."
    yield Finding("Redis", f"eviction {policy or 'not told'}", "" if policy in {None, "noeviction"} else evicts)


def _memory(found: Mapping[str, Any]) -> Finding:
    """Say how much is left of what Redis may use."""
    used, most = int(found.get("used_memory", 0)), int(found.get("maxmemory", 0))
    if not most:
        limit = (
            "Set `maxmemory` below the machine's: without it the system ends a Redis that grows, and none says why."
        )
        return Finding("Redis", f"memory {in_bytes(used)} used, no limit of its own", limit, passing=True)
    left = max(0, most - used) / most
    remedy = "Raise `maxmemory`, or see which keys grow: when it is full, no job can be enqueued."
    said = f"memory {in_bytes(used)} of {in_bytes(most)} used, {left:.0%} left"
    return Finding("Redis", said, remedy if left < LOW else "", passing=VERY_LOW <= left < LOW)


def _clock(redis: Any) -> Finding:
    asked = time.time()
    seconds, micros = redis.time()
    return clock_finding("Redis", seconds + micros / 1e6, (asked + time.time()) / 2)


def _inboxes(redis: Any) -> Iterator[Finding]:
    for look in Transport(redis).look_at([INBOX, *_named(redis)]):
        yield _inbox(redis, look)


def _named(redis: Any) -> list[str]:
    """Return the inboxes of named producers, also of those that nobody has added."""
    try:
        keys = islice(redis.scan_iter(f"{INBOX}:*", count=1_000), 2 * MAX_PRODUCERS)
        names = [key.decode(errors="replace") for key in keys]
    except ResponseError:
        return []  # a missing right, which is told
    return sorted(each for each in names if problem_of_producer(each.removeprefix(f"{INBOX}:")) is None)


def _inbox(redis: Any, look: InboxLook) -> Finding:
    part = f"Inbox {name}" if (name := producer_of(look.stream)) else "Inbox"
    if problem := look.problem():
        return Finding(part, look.kind, f"{problem}.")
    if look.ahead_seconds > AHEAD_SECONDS:
        said = f"its last id is {look.ahead_seconds:.0f} s ahead of Redis' clock"
        return Finding(part, said, "Correct the clock, or the producer that names ids itself.")
    return _lag(part, redis.xlen(look.stream) if look.first else 0, look)


def _lag(part: str, count: int, look: InboxLook) -> Finding:
    """Say what is not taken in yet: what is settled is deleted."""
    if not count:
        return Finding(part, "can be written, and is empty")
    seconds = max(0.0, look.now - int(look.first.partition("-")[0]) / 1000)
    late = seconds > LATE_SECONDS
    said = f"can be written; {count} wait, the first for {in_time(seconds)}"
    remedy = "Workers take them: see below whether one is alive, and what it says."
    if name := producer_of(look.stream):
        # What waits for its producer's rate may be old; whether anybody reads it, /readyz of each worker knows.
        slower = f"It may have sent more than its rate (`producers show {name}`); otherwise see below."
        return Finding(part, said, slower if late else "", passing=late)
    return Finding(part, said, remedy if late else "", passing=LATE_SECONDS < seconds <= STANDSTILL_SECONDS)
