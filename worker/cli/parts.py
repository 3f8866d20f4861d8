"""What several commands need: the client, the ledger, the console, and how a cancellation looks in a table."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker import shared_settings
from worker.cancellation.status import SafeToRefund
from worker.cli.words import connection_called, refund_in_words
from worker.client import CancelClient
from worker.environment import from_environment
from worker.inputs.text import visible, visible_json
from worker.ledger import audit
from worker.ledger.database import open_ledger
from worker.settings import known_secrets
from worker.telemetry.logs import MIN_SECRET_LENGTH, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from worker.ledger.record import Cancellation


class SafeConsole(Console):
    """A console that shows every string as it is, also in a table: no markup, no emoji, no escape sequence.

    Colours come from `style` and `Text`, which holds words of our own only.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Whatever is printed comes through here; so no command can forget it.
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False, "highlight": False})


# Piped into a file or a program, lines keep their length.
console = SafeConsole(width=None if sys.stdout.isatty() else 160)

# The worker's own default, so that a person who set nothing looks where the worker writes.
DEFAULT_DATABASE = "sqlite:///cancellations.sqlite3"


def client(who: str | None = None, producer: str | None = None) -> CancelClient:
    database_url = from_environment("DATABASE_URL") or DEFAULT_DATABASE
    return CancelClient(database_url=database_url, actor=who, producer=producer)


Who = Annotated[str | None, typer.Option("--as", help="Your name; default: CANCEL_ACTOR, else user@host.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why; it is kept beside your name (`audit list`).")]


def acting(who: str | None, why: str | None) -> audit.By:
    """Return who acts and why, for the audit, without a secret of the environment that was pasted into it."""
    return audit.acting(scrubbed(shared_settings.actor(who)), scrubbed(why) if why else None)


def acting_for_a_reason(who: str | None, why: str | None, *, ask: str = "say why") -> audit.By:
    """Return who acts and why, where an act must have a reason. Raises BadParameter without one."""
    by = acting(who, why)
    if by.reason is None:
        raise typer.BadParameter(f"{ask}; it is kept beside your name", param_hint="--reason")
    return by


def scrubbed(text: str) -> str:
    """Return a text without the secrets that the environment holds."""
    return str(without_secrets(text, [value for value in known_secrets() if len(value) >= MIN_SECRET_LENGTH]))


@contextmanager
def ledger(*, by_index: bool = False) -> Iterator[Engine]:
    """Open the ledger for one command; `by_index`: where a table may be too large to be read through."""
    with opened_ledger(from_environment("DATABASE_URL") or DEFAULT_DATABASE, by_index=by_index) as engine:
        yield engine


@contextmanager
def opened_ledger(address: str, *, by_index: bool = False) -> Iterator[Engine]:
    """Open the ledger of an address, and close it with the block."""
    engine = open_ledger(address, pool_size=1, by_index=by_index)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def recorded(
    by: audit.By, action: audit.Action, kind: audit.Kind, ids: Sequence[str | int], **more: Any
) -> Iterator[Connection]:
    """Act on the ledger in one transaction, and write down who did: `audit.recorded`."""
    with ledger() as opened, opened.begin() as db, audit.recorded(db, by, action, kind, ids, **more):
        yield db


_COLOURS = {SafeToRefund.YES: "green", SafeToRefund.NO: "red", SafeToRefund.NOT_YET: "yellow"}


def refund(found: Cancellation) -> Text:
    """Answer the one question of support for a table, with its time."""
    return Text(refund_in_words(found), style=_COLOURS[found.safe_to_refund])


def print_json(document: dict[str, Any]) -> None:
    print(visible_json(msgspec.json.encode(document)), flush=True)  # noqa: T201 - for programs, one line each


def print_beside(sentence: str) -> None:
    """Say something beside a list that may go into a program."""
    SafeConsole(stderr=True, soft_wrap=True).print(sentence, style="dim")


def overview(found: Iterable[Cancellation]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("connection", "order", "status", "verdict", "evidence", "tries", "refund", "reason", "id"):
        table.add_column(name, overflow="fold", no_wrap=name in {"status", "verdict"})
    for row in found:
        table.add_row(
            connection_called(row.connection_id, row.connection_name, row.connection_owner),
            row.order_id,
            row.status + (f" (held: {row.hold_reason})" if row.hold_reason and not row.ended else ""),
            row.verdict or "",
            row.evidence or "",
            str(row.attempts),
            refund(row),
            row.outcome_reason or "",
            row.id,
        )
    return table
