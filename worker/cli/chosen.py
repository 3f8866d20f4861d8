"""What commands do with the cancellations that a person chose: find them, leave some out, act on the rest in parts.

Knows how each act is written down; does not know which act it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import typer
from msgspec import structs

from worker.cancellation.status import Status, Verdict
from worker.cli.filters import batched
from worker.cli.parts import console, ledger, print_beside, recorded
from worker.cli.progress import progress
from worker.errors import UnknownCancellationError
from worker.ledger import audit, filters, queries
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.filters import EVERYTHING, Filter

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.ledger.record import Cancellation

CHUNK = 500  # rows in one transaction: short enough to stand in nobody's way


def in_parts(
    chosen: Sequence[Cancellation], by: audit.By, action: Action, act: Callable[[Connection, Sequence[str]], set[str]]
) -> int:
    """Act on these, so many in one transaction, and write down who did; return on how many it was done."""
    done = 0
    with progress(action, len(chosen)) as shown:
        for part in batched([row.id for row in chosen], CHUNK):
            with recorded(by, action, Kind.CANCELLATION, part) as db:
                done += len(act(db, part))
            shown.advance(len(part))
    return done


def chosen(
    ids: list[str] | None, which: Filter, meant: Iterable[Status], limit: int, *, quiet: bool = False
) -> list[Cancellation]:
    """Return what a person names by ids or by a filter; without a status, those of the statuses that are meant.

    Says where there are more than `limit`, unless it is all the same to the person.
    """
    one_way(ids, which)
    with ledger(by_index=True) as opened, read_only(opened) as db:
        if ids:
            return [_known(queries.get(db, record_id), record_id) for record_id in dict.fromkeys(ids)]
        found = filters.find(db, structs.replace(which, status=which.status or tuple(meant)), limit=limit + 1)
    if len(found) > limit and not quiet:
        print_beside(f"There are more than {limit:,}: run it again, or raise --limit.")
    return found[:limit]


def one_way(ids: list[str] | None, which: Filter) -> None:
    """Refuse a choice by nothing, and one by ids and options together: the options would be ignored."""
    if not ids and which == EVERYTHING:
        raise typer.BadParameter("say which: give ids, or at least one option that chooses, such as --status")
    if ids and which != EVERYTHING:
        raise typer.BadParameter("give ids, or options that choose, not both")


def allowed(
    found: list[Cancellation],
    why_not: Callable[[Status, Verdict | None], str | None],
    done: str,
    *,
    quiet: bool = False,
) -> list[Cancellation]:
    """Return those of which nothing forbids it; say of the others why, unless it is all the same to the person."""
    refused = {row.id: why for row in found if (why := why_not(Status(row.status), _verdict(row)))}
    for record_id, why in () if quiet else refused.items():
        console.print(f"{record_id}  not {done}: {why}")
    return [row for row in found if row.id not in refused]


def _verdict(row: Cancellation) -> Verdict | None:
    return Verdict(row.verdict) if row.verdict else None


def _known(row: Cancellation | None, record_id: str) -> Cancellation:
    if row is None:
        raise UnknownCancellationError(f"Nothing in the ledger has the id {record_id}: see `cancel-worker list`.")
    return row
