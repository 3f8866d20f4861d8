"""Commands about one connection: how it stands, and the link with which its customer mends its credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from redis import RedisError
from rich.table import Table

from worker.cancellation.answer import NoReply
from worker.cancellation.freshness import Crawls, broken
from worker.cli.asking import asking_client
from worker.cli.doctor.proof import REMEDIES_OF_CRAWLS
from worker.cli.parts import Who, Why, acting, console, ledger, print_json
from worker.cli.times import moment
from worker.cli.words import connection_called, in_few_words, remedy_of_hold
from worker.ledger import audit, connections, freshness, holds, queries
from worker.ledger.audit import Action, Kind
from worker.ledger.connections import Affected, ConnectionRow
from worker.ledger.database import read_only
from worker.settings import load_settings
from worker.streams import connect_redis
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from worker.cancellation.answer import Answer


class NoLinkError(Exception):
    """Trackstar gave no link with which credentials can be mended; the text says why, and what to do."""


class TrackstarAwayError(Exception):
    """Trackstar did not answer; the text says how."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one connection."""

    row: ConnectionRow
    affected: list[Affected]
    crawls: Crawls | None
    now: datetime
    last_success: datetime | None
    pace: str


def show(
    connection_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say how one connection stands: its hold, who waits for it, its copy of orders, its pace, and what to do.

    Example: cancel-worker connections show shop-1
    """
    with ledger() as opened, read_only(opened) as db:
        row = connections.known(db, connection_id)
        found = Facts(
            row=row,
            affected=connections.affected(db, connection_id),
            crawls=freshness.crawls_of(db, connection_id),
            now=queries.now(db),
            last_success=connections.last_success(db, connection_id),
            pace=_pace(row),
        )
    if as_json:
        print_json(_fields(found))
        return
    console.print(f"Connection {connection_called(row.id, row.name, row.owner)}", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _lines(found):
        table.add_row(name, value)
    console.print(table)


def _lines(found: Facts) -> Iterator[tuple[str, str]]:
    row = found.row
    yield "warehouse system", row.integration_name or "not stated: `connections set --integration`"
    until = f", until {moment(row.held_until)}" if row.held_until else ""
    yield "hold", f"{row.hold_reason}, since {moment(row.held_at)}{until}" if row.hold_reason else "none"
    yield "token", "yes" if row.has_token else "no"
    yield "not ended", _waiting(found.affected)
    yield "copy of its orders", in_few_words(found.crawls, found.now)
    yield "pace", found.pace
    yield "last success", moment(found.last_success) or "none"
    yield "what to do", " ".join(_remedies(found)) or "nothing"


def _waiting(affected: list[Affected]) -> str:
    if not affected:
        return "nothing"
    total = sum(each.count for each in affected)
    counts = ", ".join(f"{each.count} {each.priority}" for each in affected)
    earliest = _earliest(affected)
    return f"{total} ({counts}), " + (f"the earliest send_by {moment(earliest)}" if earliest else "none has a send_by")


def _earliest(affected: list[Affected]) -> datetime | None:
    return min((each.send_by for each in affected if each.send_by), default=None)


def _remedies(found: Facts) -> list[str]:
    problem = broken(found.crawls, found.now)
    held = found.row.hold_reason
    said = [remedy_of_hold(held, found.row.id)] if held else []
    return [*said, *([REMEDIES_OF_CRAWLS[problem]] if problem else [])]


def _pace(row: ConnectionRow) -> str:
    """Say how many writes per second its workers use, and whose word that is."""
    settings = load_settings()
    ours = row.writes_per_second or settings.writes_per_second
    whose = "stated for it" if row.writes_per_second else "WRITES_PER_SECOND"
    try:
        with closing(connect_redis(settings.redis_url, socket_timeout=5)) as redis:
            pacing = Pacing(redis, "w")
            limit, ahead = pacing.limit(row.id), pacing.ahead(row.id) or 0.0
    except RedisError as error:
        return f"{ours:g} writes/s ({whose}); what Redis knows could not be read ({type(error).__name__})"
    if limit is not None and limit < ours:
        ours, whose = limit, "Trackstar's own limit in the last ten minutes"
    paused = f", paused for another {ahead:.0f} s" if ahead >= 1 else ""
    return f"{ours:g} writes/s ({whose}){paused}"


def _fields(found: Facts) -> dict[str, object]:
    return {
        **msgspec.structs.asdict(found.row),
        "waiting": sum(each.count for each in found.affected),
        "affected": [msgspec.structs.asdict(each) for each in found.affected],
        "earliest_send_by": _earliest(found.affected),
        "copy_of": found.crawls.began_at if found.crawls else None,
        "crawls": found.crawls.status if found.crawls else None,
        "pace": found.pace,
        "last_success": found.last_success,
        "what_to_do": " ".join(_remedies(found)),
    }


def mend_link(
    connection_id: Annotated[str, typer.Argument(metavar="ID")], reason: Why = None, who: Who = None
) -> None:
    """Print Trackstar's link with which the customer enters the warehouse's credentials anew; its token stays.

    Example: cancel-worker connections mend-link shop-1
    """
    client = asking_client(load_settings())
    with ledger() as opened, read_only(opened) as db:
        row = connections.known(db, connection_id)
        its_id = freshness.trackstar_id(db, connection_id)
    by, link = acting(who, reason), _link_of(client.magic_link(its_id), connection_id)
    with ledger() as opened, opened.begin() as db:
        audit.write(db, by, Action.MEND_LINK, Kind.CONNECTION, connection_id)
    console.print(link, soft_wrap=True)  # as text: nobody's terminal may open it
    if row.hold_reason == holds.CREDENTIALS:
        said = "Give it to the customer of this connection alone. When they are done, a probe ends the hold by itself."
    else:
        held = f"held as {row.hold_reason}" if row.hold_reason else "not held"
        said = f"Connection {connection_id} is {held}: what its credentials have to do with it is for you to know."
    console.print(said, style="yellow", soft_wrap=True)


def _link_of(answer: Answer, connection_id: str) -> str:
    """Return the link; raises with one sentence where there is none."""
    if isinstance(answer, NoReply):
        raise TrackstarAwayError(
            f"Trackstar does not answer ({answer.reason}): check TRACKSTAR_BASE_URL and the network."
        )
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise NoLinkError("Trackstar answers 401: correct TRACKSTAR_API_KEY.")
    if answer.status == HTTPStatus.NOT_FOUND:
        raise NoLinkError(
            f"Trackstar gives no link for connection {connection_id} (404): where its id there is another, state it "
            "with `cancel-worker connections set ID --trackstar-id`; else use Trackstar's dashboard."
        )
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        said = f": {answer.message}" if answer.message else ""
        raise NoLinkError(f"Trackstar refuses a link (status {answer.status}{said}); use Trackstar's dashboard.")
    if answer.link is None:
        raise NoLinkError("Trackstar's answer holds no https link: use Trackstar's dashboard.")
    return answer.link
