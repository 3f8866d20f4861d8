"""The command `windows`: what chance a cancel has, from our own outcomes; and the warning of `enqueue`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation import chances
from worker.cancellation.chances import AGE_EDGES, HOURS, SMALL_SHARE, SmallChance, Tally
from worker.cli.parts import console, ledger
from worker.cli.times import moment
from worker.inputs.text import visible_json
from worker.ledger import outcomes
from worker.ledger.database import read_only

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.cancellation.chances import Cell
    from worker.ledger.outcomes import Sample

NOT_STATED = "a warehouse system that nobody has stated"


def windows(
    connection: Annotated[str | None, typer.Option("--connection", "-c", help="Of this connection only.")] = None,
    integration: Annotated[str | None, typer.Option(help="Of this warehouse system only.")] = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Of the cancels received in so many days.")
    ] = outcomes.DAYS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Say which share of cancels succeeded, by warehouse system, the order's age, and the hour (UTC).

    Example: cancel-worker windows --integration shiphero
    """
    if connection is not None and integration is not None:
        raise typer.BadParameter("say --connection or --integration, not both")
    with ledger(by_index=True) as opened, read_only(opened) as db:
        if connection is not None:
            sample = outcomes.of_connection(db, connection, days)
        elif integration is not None:
            sample = outcomes.of_integration(db, integration, days)
        else:
            sample = outcomes.of_all(db, days)
    if as_json:
        for line in _lines(sample):
            print(visible_json(msgspec.json.encode(line)))  # noqa: T201 - for programs, one line each
        return
    console.print(_looked_at(sample, days))
    for system, cells in chances.by_system(sample.cells).items():
        _print_system(system, cells)


def _looked_at(sample: Sample, days: int) -> str:
    if not sample.rows:
        return f"No cancellation was received in the last {days} days."
    most = ", which is the most that is looked at" if sample.rows >= outcomes.MAX_ROWS else ""
    return f"Of the newest {sample.rows:,} cancellations, received since {moment(sample.since)}{most}:"


def _print_system(system: str | None, cells: list[Cell]) -> None:
    of_all = chances.total(cells)
    console.print()
    console.print(system or NOT_STATED, style="bold")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("when it was first sent", "succeeded", "share, 95 % sure", "not known yet", "last success"):
        table.add_column(column, overflow="fold")
    for name, tally in _rows(of_all, cells):
        low, high = tally.bounds
        share = f"{low:.0%} to {high:.0%}" if tally.trials else "nobody knows"
        table.add_row(
            name,
            f"{tally.succeeded} of {tally.trials}",
            Text(share, style="red" if tally.small else ""),
            str(tally.undecided or ""),
            moment(tally.last_success),
        )
    console.print(table)


def _rows(of_all: Tally, cells: list[Cell]) -> Iterator[tuple[str, Tally]]:
    yield "at any time", of_all
    for age, tally in chances.by_age(cells).items():
        yield f"the order {_age_in_words(age)}", tally
    for hour, tally in chances.by_hour(cells).items():
        yield _hour_in_words(hour), tally


def _age_in_words(age: int | None) -> str:
    if age is None:
        return "of an age that nobody has said"
    if age == 0:
        return f"younger than {_length(AGE_EDGES[0])}"
    if age == len(AGE_EDGES):
        return f"{_length(AGE_EDGES[-1])} old or older"
    return f"{_length(AGE_EDGES[age - 1])} to {_length(AGE_EDGES[age])} old"


def _length(seconds: int) -> str:
    length = timedelta(seconds=seconds)
    if length.days > 1:
        return f"{length.days} days"
    return f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds // 60} min"  # noqa: PLR2004


def _hour_in_words(hour: int) -> str:
    return f"{hour:02}:00 to {(hour + 1) % HOURS:02}:00 UTC"


def _lines(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield for programs what is known of each system: of all, then by age (seconds), then by hour (UTC)."""
    for system, cells in chances.by_system(sample.cells).items():
        yield {"integration_name": system, **_fields(chances.total(cells))}
        for age, tally in chances.by_age(cells).items():
            edges = (None, None) if age is None else ((0, *AGE_EDGES)[age], (*AGE_EDGES, None)[age])
            yield {"integration_name": system, "age_from": edges[0], "age_to": edges[1], **_fields(tally)}
        for hour, tally in chances.by_hour(cells).items():
            yield {"integration_name": system, "hour_utc": hour, **_fields(tally)}


def _fields(tally: Tally) -> dict[str, Any]:
    low, high = tally.bounds
    return {**msgspec.structs.asdict(tally), "low": round(low, 4), "high": round(high, 4), "small": tally.small}


def warn_of_small_chance(connection_id: str) -> None:
    """Print where a cancel of this connection that is sent now has a small chance; nothing where nobody can tell."""
    try:
        with ledger(by_index=True) as opened, read_only(opened) as db:
            sample = outcomes.of_same_system(db, connection_id)
    except SQLAlchemyError:
        return  # what was enqueued is safe
    found = chances.small_chance(sample.cells, sample.now.hour)
    if found is not None:
        console.print(_warning(found), style="yellow", soft_wrap=True)


def _warning(found: SmallChance) -> str:
    when = ""
    if found.hour is not None:
        when = f" sent from {_hour_in_words(found.hour)}"
    elif found.from_age is not None:
        when = f" of orders {_length(found.from_age)} old or older"
    return (
        f"The chance is small: of the cancels{when} in this warehouse system {found.tally.succeeded} of "
        f"{found.tally.trials} succeeded (at most {found.tally.bounds[1]:.0%}; warned below {SMALL_SHARE:.0%}). See "
        "`cancel-worker windows`, and call the warehouse."
    )
