"""The command `doctor`: looks at every part a worker needs, and says what to do about each that is not well."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from redis import Redis, RedisError
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.answer import NoReply, Reply
from worker.cli.parts import console
from worker.ledger import connections, migrations
from worker.ledger.database import open_ledger, read_only
from worker.ledger.problems import ledger_problem
from worker.ledger.vault import CredentialsError, TokenVault
from worker.settings import Settings, load_settings
from worker.streams import connect_redis
from worker.trackstar.client import TrackstarClient

if TYPE_CHECKING:
    from worker.ledger.connections import ConnectionRow

OLDEST_REDIS = (6, 2)


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `remedy` is what to do; empty where all is well."""

    part: str
    said: str
    remedy: str = ""


def doctor() -> None:
    """Check settings, Redis, the ledger, Trackstar and every connection; exits 1 where something needs a person."""
    settings = load_settings()
    table = Table(box=None, show_header=False, pad_edge=False)
    findings = [*_redis(settings), *_ledger(settings), *_connections(settings)]
    for each in findings:
        table.add_row("[red]✗" if each.remedy else "[green]✓", each.part, each.said, each.remedy)
    console.print(table)
    if any(each.remedy for each in findings):
        raise typer.Exit(1)


def _redis(settings: Settings) -> Iterator[Finding]:
    redis: Any = connect_redis(settings.redis_url, socket_timeout=5)
    try:
        server, kept = redis.info("server"), redis.info("persistence")
        policy = _policy(redis)
    except RedisError as error:
        yield Finding("Redis", type(error).__name__, "Start it, or correct REDIS_URL.")
        return
    version = tuple(int(part) for part in server["redis_version"].split(".")[:2])
    old = "" if version >= OLDEST_REDIS else "Upgrade to 6.2 or newer."
    # Valkey tells as `redis_version` the Redis that it stands in for.
    valkey = f" (Valkey {server['valkey_version']})" if "valkey_version" in server else ""
    yield Finding("Redis", f"version {server['redis_version']}{valkey}", old)
    aof = "" if kept.get("aof_enabled") else "Set `appendonly yes`: without it a restart loses accepted jobs."
    yield Finding("Redis", f"append-only file {'on' if not aof else 'off'}", aof)
    evicts = "Set `maxmemory-policy noeviction`: any other may drop jobs in silence."
    yield Finding("Redis", f"eviction {policy or 'not told'}", "" if policy in {None, "noeviction"} else evicts)


def _policy(redis: Redis) -> str | None:
    try:
        return str(redis.config_get("maxmemory-policy")["maxmemory-policy"])
    except (RedisError, KeyError):
        return None  # managed servers often forbid CONFIG


def _ledger(settings: Settings) -> Iterator[Finding]:
    try:
        with read_only(open_ledger(settings.database_url, pool_size=1)) as db:
            found = migrations.current(db)
    except SQLAlchemyError as error:
        yield Finding("Ledger", type(error).__name__, ledger_problem(error))
        return
    old = "" if found == migrations.head() else "Run `cancel-worker migrate`."
    yield Finding("Ledger", f"schema {found or 'empty'}", old)


def _connections(settings: Settings) -> Iterator[Finding]:
    key = settings.trackstar_api_key.get_secret_value()
    if not key:
        yield Finding("Trackstar", "no API key", "Set TRACKSTAR_API_KEY.")
        return
    try:
        with read_only(open_ledger(settings.database_url, pool_size=1)) as db:
            rows = connections.list_all(db)
            encrypted = connections.encrypted_tokens(db)
    except SQLAlchemyError:
        return  # told above
    trackstar = TrackstarClient(
        settings.trackstar_base_url,
        key,
        connect_timeout=settings.connect_timeout_seconds,
        request_timeout=min(settings.request_timeout_seconds, 15),
        max_response_bytes=settings.max_response_bytes,
        threads=1,
    )
    for row in rows:
        yield from _connection(row, encrypted.get(row.id), TokenVault(settings.keys), trackstar)


def _connection(
    row: ConnectionRow, encrypted: str | None, vault: TokenVault, trackstar: TrackstarClient
) -> Iterator[Finding]:
    part = f"Connection {row.id}"
    if row.hold_reason:
        yield Finding(
            part, f"held ({row.hold_reason}), {row.waiting} wait", _REMEDIES[row.hold_reason].format(id=row.id)
        )
    try:
        if encrypted:
            vault.decrypt(encrypted)
    except CredentialsError as error:
        yield Finding(part, "its token cannot be read", str(error))
    answer = trackstar.read_connection(row.id)
    if isinstance(answer, NoReply):
        yield Finding(
            part, f"Trackstar does not answer ({answer.reason})", "Check TRACKSTAR_BASE_URL and the network."
        )
    elif answer.status == HTTPStatus.UNAUTHORIZED:
        yield Finding(part, "Trackstar answers 401", "Correct TRACKSTAR_API_KEY.")
    elif answer.status == HTTPStatus.NOT_FOUND:
        yield Finding(
            part,
            "Trackstar knows no connection of this id",
            "Name it as Trackstar does, or it cannot be checked here.",
        )
    else:
        yield from _facts(part, answer)


def _facts(part: str, answer: Reply) -> Iterator[Finding]:
    facts = answer.connection if answer.status == HTTPStatus.OK else None
    if facts is None:
        yield Finding(part, f"Trackstar answers {answer.status} in a form nobody documents", "Ask again later.")
        return
    enabled = "" if facts.can_cancel is not False else "Ask Trackstar to enable `cancel_order` for this connection."
    yield Finding(
        part, f"{facts.integration_name or 'integration not told'}, cancel {_SAYS[facts.can_cancel]}", enabled
    )
    for error in facts.errors:
        yield Finding(part, error, "Trackstar reports this error: correct it there.")


_SAYS = {True: "available", False: "not available", None: "not told"}
_REMEDIES = {
    "credentials": "Give it a new token: `cancel-worker connections rotate {id}`.",
    "outage": "Its warehouse does not answer; it is probed and goes on by itself.",
    "trackstar_outage": "Trackstar does not answer; it is probed and goes on by itself.",
    "operator": "A person holds it: `cancel-worker connections resume {id}`.",
    "unknown_connection": "Nobody has added it: `cancel-worker connections add {id}`.",
}
