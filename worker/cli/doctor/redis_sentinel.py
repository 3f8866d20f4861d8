"""What `doctor` says of Sentinel: who answers, whom they name, and whether a failover would lose what was accepted.

Says nothing where REDIS_URL names no sentinels. Knows no ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import RedisError

from worker.cli.doctor.finding import Finding
from worker.cli.doctor.redis import asked_redis
from worker.inputs.addresses import parse_redis_url
from worker.sentinel import Primary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings import Settings

FEWEST = 3  # with two, the loss of one leaves no majority, and so no failover


def look_at_sentinels(settings: Settings) -> Iterator[Finding]:
    """Ask every sentinel, then the primary that they name."""
    address = parse_redis_url(settings.redis_url)
    if not address.sentinels:
        return
    primary = Primary(address)
    named = {f"{host}:{port}": _named(primary, (host, port)) for host, port in address.sentinels}
    for sentinel, name in named.items():
        remedy = "" if name else f"Start it, or correct its address and {primary.service!r} in REDIS_URL."
        said = f"{sentinel} names {name or 'nobody'}"
        yield Finding("Sentinel", said, remedy, passing=bool(remedy))
    names = {name for name in named.values() if name}
    if len(names) > 1:
        yield Finding("Sentinel", "they name different primaries", "Look again in a minute.", passing=True)
    if len(named) < FEWEST:
        yield Finding("Sentinel", f"{len(named)} in REDIS_URL", f"Name {FEWEST}, on different machines.", passing=True)
    if names:
        yield from _replicas(asked_redis(settings))


def _named(primary: Primary, sentinel: tuple[str, int]) -> str | None:
    try:
        found = primary.ask(sentinel)
    except RedisError:
        return None
    return f"{found[0]}:{found[1]}" if found else None


def _replicas(redis: Any) -> Iterator[Finding]:
    try:
        count = len(redis.role()[2])
        least = redis.config_get("min-replicas-to-write").get("min-replicas-to-write")
    except RedisError:
        return  # no right to ask: nothing that a worker needs
    remedy = "" if count else "Bring one back: until then `CancelClient` takes nothing, and no failover is possible."
    yield Finding("Sentinel", f"{count} replicas of the primary", remedy)
    if least == "0":
        advice = "Set it to 1, so that a primary that was cut off takes nothing (docs/scale.md)."
        yield Finding("Sentinel", "min-replicas-to-write is 0", advice, passing=True)
