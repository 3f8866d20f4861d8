"""What several commands need: the client, the ledger, the console, and how a cancellation looks in a table."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cancellation.status import SafeToRefund
from worker.cli.words import refund_in_words
from worker.client import CancelClient
from worker.environment import from_environment
from worker.inputs.text import visible
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sqlalchemy import Engine

    from worker.ledger.queries import Cancellation


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


def client() -> CancelClient:
    return CancelClient(database_url=from_environment("DATABASE_URL") or DEFAULT_DATABASE)


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


_COLOURS = {SafeToRefund.YES: "green", SafeToRefund.NO: "red", SafeToRefund.NOT_YET: "yellow"}


def refund(found: Cancellation) -> Text:
    """Answer the one question of support for a table, with its time."""
    return Text(refund_in_words(found), style=_COLOURS[found.safe_to_refund])


def moment(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else ""


def overview(found: Iterable[Cancellation]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("connection", "order", "status", "verdict", "evidence", "tries", "refund", "reason", "id"):
        table.add_column(name, overflow="fold", no_wrap=name in {"status", "verdict"})
    for row in found:
        table.add_row(
            row.connection_id,
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
