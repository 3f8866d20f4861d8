"""Numbers for people and for machines: medians with their spread, verdicts on the targets, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

console = Console(width=120)


class Spread(msgspec.Struct, frozen=True):
    """A median, and how far single rounds were from it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Divide round by round: what the machine did meanwhile then hits both."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One target, what was measured, and whether it was met."""

    what: str
    value: Spread
    target: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value.median >= self.target if self.at_least else self.value.median <= self.target


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for column in ("what", "measured", "target", ""):
        table.add_column(column)
    for verdict in verdicts:
        sign = "≥" if verdict.at_least else "≤"
        word = "[green]met[/]" if verdict.met else "[red]missed[/]"
        table.add_row(verdict.what, str(verdict.value), f"{sign} {_short(verdict.target)}", word)
    console.print(table)


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(content), indent=2) + "\n")
    console.print(f"Written to {path}")
