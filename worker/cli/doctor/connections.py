"""What `doctor` says of Trackstar and each connection: credentials, hold, freshness, pace and actions."""

from __future__ import annotations

import time
from contextlib import closing
from http import HTTPStatus
from typing import TYPE_CHECKING

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.answer import NoReply, Reply
from worker.cli.asking import asking_client
from worker.cli.doctor.asking import LIMIT_SECONDS, PATIENCE_SECONDS
from worker.cli.doctor.credentials import keys_held, tokens_kept
from worker.cli.doctor.finding import Finding
from worker.cli.doctor.redis import asked_redis
from worker.cli.parts import opened_ledger
from worker.cli.words import connection_called, in_few_words, remedy_of_hold
from worker.ledger import backlog, endpoints, freshness, queries
from worker.ledger.database import read_only
from worker.ledger.vault import of_connection, of_endpoint
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.ledger.backlog import Survey, Surveyed
    from worker.settings import Settings

MAX_ASKED = 50  # connections that Trackstar is asked about
ASKED_SECONDS = LIMIT_SECONDS - PATIENCE_SECONDS - 0.5  # after that no further question is begun


def look_at_connections(settings: Settings) -> Iterator[Finding]:
    """Look at the credentials, and at each connection: in the ledger, in Redis, and at Trackstar."""
    began = time.monotonic()
    yield from keys_held(settings.keys)
    if not settings.trackstar_api_key.get_secret_value():
        yield Finding("Trackstar", "no API key", "Set TRACKSTAR_API_KEY.")
        return
    try:
        with opened_ledger(settings.database_url, by_index=True) as ledger, read_only(ledger) as db:
            found, crawls, now = backlog.survey(db, MAX_ASKED), freshness.crawls_of_all(db), queries.now(db)
            kept = endpoints.secrets_of_all(db)
    except SQLAlchemyError:
        return  # told of the ledger
    tokens = [(of_connection(row.id), row.encrypted_token) for row in found.chosen if row.encrypted_token]
    secrets = [(of_endpoint(id_), each) for id_, both in kept.items() for each in both]
    yield from tokens_kept([*tokens, *secrets], settings.keys)
    limits = _limits(settings, found.chosen)
    trackstar, unasked, is_silent = asking_client(settings, PATIENCE_SECONDS), 0, False
    for row in found.chosen:
        yield from _held(row)
        if is_silent or time.monotonic() - began > ASKED_SECONDS:
            unasked += 1
            continue
        answer = trackstar.read_connection(row.trackstar_id)
        is_silent = isinstance(answer, NoReply) and answer.reason in _SILENCE
        copy = in_few_words(crawls.get(row.id), now)
        yield from _answered(_part(row), answer, f"copy of its orders: {copy}, {_pace(row, settings, limits)}")
    if unasked:
        yield Finding("Trackstar", f"was not asked about {unasked} more: it does not answer, or slowly", passing=True)
    yield from _others(found)


def _limits(settings: Settings, rows: Sequence[Surveyed]) -> dict[str, float]:
    """Return what Trackstar itself has told of the pace of each connection, where Redis can be asked."""
    try:
        with closing(asked_redis(settings)) as redis:
            pacing = Pacing(redis, "w")
            return {row.id: limit for row in rows if (limit := pacing.limit(row.id)) is not None}
    except RedisError:
        return {}  # told of Redis


def _pace(row: Surveyed, settings: Settings, limits: Mapping[str, float]) -> str:
    ours = row.writes_per_second or settings.writes_per_second
    limit = limits.get(row.id, ours)
    return f"{limit:g} writes/s, Trackstar's own limit" if limit < ours else f"{ours:g} writes/s"


def _others(found: Survey) -> Iterator[Finding]:
    if found.left_out:
        yield Finding("Connections", f"{found.left_out} more are not looked at here, none of them before those above")
    if found.unknown:
        remedy = "Add those that are yours: `cancel-worker connections list`, `connections add ID`."
        yield Finding("Connections", f"{found.unknown} that nobody has added; jobs for them wait", remedy)


def _part(row: Surveyed) -> str:
    return f"Connection {connection_called(row.id, row.name, row.owner)}"


def _held(row: Surveyed) -> Iterator[Finding]:
    if row.hold_reason:
        remedy = remedy_of_hold(row.hold_reason, row.id)
        yield Finding(_part(row), f"held ({row.hold_reason}), {row.waiting} wait", remedy)


def _answered(part: str, answer: Reply | NoReply, more: str = "") -> Iterator[Finding]:
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
        yield from _facts(part, answer, more)


def _facts(part: str, answer: Reply, more: str) -> Iterator[Finding]:
    facts = answer.connection if answer.status == HTTPStatus.OK else None
    if facts is None:
        yield Finding(part, f"Trackstar answers {answer.status} in a form nobody documents", "Ask again later.")
        return
    enabled = "" if facts.can_cancel is not False else "Ask Trackstar to enable `cancel_order` for this connection."
    said = f"{facts.integration_name or 'integration not told'}, cancel {_SAYS[facts.can_cancel]}"
    yield Finding(part, f"{said}, {more}" if more else said, enabled)
    for error in facts.errors:
        yield Finding(part, error, "Trackstar reports this error: correct it there.")


_SILENCE = frozenset({"connect_timeout", "read_timeout", "connection_failed", "total_timeout"})
_NO_ANSWER = {
    "tls_failed": "Its certificate is not trusted: set CA_BUNDLE to the certificates of your own authority.",
    "proxy_failed": "Check TRACKSTAR_PROXY, and its user and password.",
}
_SAYS = {True: "available", False: "not available", None: "not told"}
