"""The command `doctor`: looks at every part a worker needs, and says what to do about each that is not well."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import typer
from redis import Redis, RedisError, ResponseError
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.answer import NoReply, Reply
from worker.cancellation.standstill import STANDSTILL_SECONDS
from worker.cli.asking import asking_client
from worker.cli.findings import Finding
from worker.cli.parts import console, opened_ledger
from worker.cli.proof import proof_findings
from worker.cli.words import connection_called, remedy_of_hold
from worker.inputs.faults import fault
from worker.ledger import backlog, migrations
from worker.ledger.database import read_only
from worker.ledger.problems import lacks_a_right, ledger_problem
from worker.ledger.schema import metadata
from worker.ledger.vault import CredentialsError, TokenVault
from worker.runtime.transport import Transport, what_workers_say
from worker.settings import Settings, load_settings
from worker.streams import GROUP, INBOX, connect_redis

if TYPE_CHECKING:
    from worker.ledger.backlog import Survey, Surveyed

OLDEST_REDIS = (6, 2)
MAX_ASKED = 50  # connections that Trackstar is asked about
MAX_SILENT = 3  # times that Trackstar does not answer; then nobody asks on
AHEAD_SECONDS = 60.0  # ids of a stream rise for ever: once ahead of the clock, they stay so

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


def doctor() -> None:
    """Check settings, Redis, the ledger, Trackstar and every connection; exits 1 where something needs a person.

    Example: cancel-worker doctor
    """
    settings = load_settings()
    table = Table(box=None, show_header=False, pad_edge=False)
    findings = [
        *_redis(settings),
        *_ledger(settings),
        *_workers(settings),
        *_connections(settings),
        *proof_findings(settings),
    ]
    for each in findings:
        table.add_row(_mark(each), each.part, each.said, each.remedy)
    console.print(table)
    if any(each.remedy for each in findings):
        raise typer.Exit(1)


def _mark(found: Finding) -> Text:
    if found.passing:
        return Text("!", "yellow")
    return Text("✗", "red") if found.remedy else Text("✓", "green")


def _redis(settings: Settings) -> Iterator[Finding]:
    redis: Any = connect_redis(settings.redis_url, socket_timeout=5)
    try:
        redis.ping()
    except RedisError as error:
        yield Finding("Redis", type(error).__name__, "Start it, or correct REDIS_URL.")
        return
    yield from _server(redis)
    try:
        missing = _missing_rights(redis)
        yield Finding("Redis", f"rights {'missing' if missing else 'complete'}", missing)
        yield from _inbox(redis)
    except RedisError as error:
        yield Finding("Redis", fault(error), "Correct this; until then no job can be taken or sent.")


def _server(redis: Any) -> Iterator[Finding]:
    try:
        server, kept = redis.info("server"), redis.info("persistence")
    except ResponseError:
        return  # no right to ask: nothing that a worker needs
    version = tuple(int(part) for part in server["redis_version"].split(".")[:2])
    old = "" if version >= OLDEST_REDIS else "Upgrade to 6.2 or newer."
    # Valkey tells as `redis_version` the Redis that it stands in for.
    valkey = f" (Valkey {server['valkey_version']})" if "valkey_version" in server else ""
    yield Finding("Redis", f"version {server['redis_version']}{valkey}", old)
    aof = "" if kept.get("aof_enabled") else "Set `appendonly yes`: without it a restart loses accepted jobs."
    yield Finding("Redis", f"append-only file {'on' if not aof else 'off'}", aof)
    policy = _policy(redis)
    evicts = "Set `maxmemory-policy noeviction`: any other may drop jobs in silence."
    yield Finding("Redis", f"eviction {policy or 'not told'}", "" if policy in {None, "noeviction"} else evicts)


def _policy(redis: Redis) -> str | None:
    try:
        return str(redis.config_get("maxmemory-policy")["maxmemory-policy"])
    except (RedisError, KeyError):
        return None  # managed servers often forbid CONFIG


def _missing_rights(redis: Redis) -> str:
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


def _inbox(redis: Redis) -> Iterator[Finding]:
    look = Transport(redis).look()
    if problem := look.problem():
        yield Finding("Inbox", look.kind, f"{problem}.")
    elif look.ahead_seconds > AHEAD_SECONDS:
        said = f"its last id is {look.ahead_seconds:.0f} s ahead of Redis' clock"
        yield Finding("Inbox", said, "Correct the clock, or the producer that names ids itself.")
    else:
        yield Finding("Inbox", "can be written")


def _ledger(settings: Settings) -> Iterator[Finding]:
    with opened_ledger(settings.database_url) as ledger:
        try:
            with read_only(ledger) as db:
                found = migrations.current(db)
        except SQLAlchemyError as error:
            yield Finding("Ledger", type(error).__name__, ledger_problem(error))
            return
        old = "" if found == migrations.head() else "Run `cancel-worker migrate`."
        yield Finding("Ledger", f"schema {found or 'empty'}", old)
        if not old:
            yield from _rights(ledger)


def _rights(ledger: sa.Engine) -> Iterator[Finding]:
    missing = []
    for table in metadata.sorted_tables:
        try:
            with ledger.begin() as db:  # it writes no row
                columns = [column.name for column in table.c]
                db.execute(sa.insert(table).from_select(columns, sa.select(table).where(sa.false())))
        except SQLAlchemyError as error:
            if not lacks_a_right(error):
                yield Finding("Ledger", "cannot be written", f"{fault(error)}.")
                return
            missing.append(table.name)
    if missing:
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(missing)} TO the role in DATABASE_URL."
        yield Finding("Ledger", f"may not write {', '.join(missing)}", grant)


def _workers(settings: Settings) -> Iterator[Finding]:
    """Say what each worker says of itself; and where none does, whether something is due."""
    try:
        said = what_workers_say(connect_redis(settings.redis_url, socket_timeout=5))
        with opened_ledger(settings.database_url) as ledger, read_only(ledger) as db:
            due = backlog.longest_due(db)
    except (RedisError, SQLAlchemyError):
        return  # told above
    for name, problems in sorted(said.items()):
        yield Finding(f"Worker {name}", "not ready" if problems else "ready", " ".join(problems))
    if not said:
        late = due is not None and due.seconds > STANDSTILL_SECONDS
        waits = f", {due.connection_id} has waited for {due.seconds:.0f} s" if due and late else ""
        yield Finding("Workers", f"none has said anything for a minute{waits}", "Start one." if late else "")


def _connections(settings: Settings) -> Iterator[Finding]:
    if not settings.trackstar_api_key.get_secret_value():
        yield Finding("Trackstar", "no API key", "Set TRACKSTAR_API_KEY.")
        return
    try:
        with opened_ledger(settings.database_url) as ledger, read_only(ledger) as db:
            found = backlog.survey(db, MAX_ASKED)
    except SQLAlchemyError:
        return  # told above
    trackstar = asking_client(settings)
    silent = 0
    for row in found.chosen:
        yield from _kept(row, TokenVault(settings.keys))
        if silent < MAX_SILENT:
            answer = trackstar.read_connection(row.id)
            silent = silent + 1 if isinstance(answer, NoReply) else 0
            yield from _answered(_part(row), answer)
    yield from _others(found)


def _others(found: Survey) -> Iterator[Finding]:
    if found.left_out:
        yield Finding("Connections", f"{found.left_out} more are not looked at here, none of them before those above")
    if found.unknown:
        remedy = "Add those that are yours: `cancel-worker connections list`, `connections add ID`."
        yield Finding("Connections", f"{found.unknown} that nobody has added; jobs for them wait", remedy)


def _part(row: Surveyed) -> str:
    return f"Connection {connection_called(row.id, row.name, row.owner)}"


def _kept(row: Surveyed, vault: TokenVault) -> Iterator[Finding]:
    part = _part(row)
    if row.hold_reason:
        remedy = remedy_of_hold(row.hold_reason, row.id)
        yield Finding(part, f"held ({row.hold_reason}), {row.waiting} wait", remedy)
    try:
        if row.encrypted_token:
            vault.decrypt(row.encrypted_token)
    except CredentialsError as error:
        yield Finding(part, "its token cannot be read", str(error))


def _answered(part: str, answer: Reply | NoReply) -> Iterator[Finding]:
    if isinstance(answer, NoReply):
        said = f"Trackstar does not answer ({answer.reason}: {answer.detail})"
        yield Finding(part, said, _NO_ANSWER.get(answer.reason, "Check TRACKSTAR_BASE_URL and the network."))
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


_NO_ANSWER = {
    "tls_failed": "Its certificate is not trusted: set CA_BUNDLE to the certificates of your own authority.",
    "proxy_failed": "Check TRACKSTAR_PROXY, and its user and password.",
}
_SAYS = {True: "available", False: "not available", None: "not told"}
