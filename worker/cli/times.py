"""How instants are written: in local time with its offset for a person at a terminal, in UTC for programs.

Knows the terminal and `--utc`; does not know what an instant means.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Annotated, Any

import typer

from worker.cli.signatures import with_parameters

_in_utc = False  # what the command line said last


Utc = Annotated[bool, typer.Option("--utc", help="Times in UTC; at a terminal they are local.")]


def with_utc(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option `--utc`."""
    own = inspect.signature(command, eval_str=True).parameters
    utc = inspect.Parameter("utc", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Utc)

    @wraps(command)
    def run(*, utc: bool, **given: Any) -> None:
        global _in_utc  # noqa: PLW0603 - one process is one command line
        _in_utc = utc
        command(**given)

    return with_parameters(run, [*own.values(), utc])


def moment(when: datetime | None) -> str:
    """Write an instant to the second; nothing for None."""
    return _zoned(when, "%Y-%m-%d %H:%M:%S") if when else ""


def minute(when: datetime) -> str:
    """Write an instant to the minute; with its day where that is not today."""
    today = _local(when).date() == _local(datetime.now(UTC)).date()
    return _zoned(when, "%H:%M" if today else "%Y-%m-%d %H:%M")


def minute_from(when: datetime) -> str:
    """Write the next full minute: what is known by an instant is known by the minute that is shown."""
    return minute(when + timedelta(seconds=59) if when.second or when.microsecond else when)


def _local(when: datetime) -> datetime:
    return when.astimezone(UTC if _in_utc or not sys.stdout.isatty() else None)


def _zoned(when: datetime, form: str) -> str:
    local = _local(when)
    return f"{local:{form}} {f'{local.isoformat()[-6:]}' if local.utcoffset() else 'UTC'}"
