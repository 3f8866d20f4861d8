"""What every part of the bench is given: the running servers, the options, and a place for the numbers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from bench.contenders import CONTENDERS, OURS
from bench.report import console
from bench.running import StalledError, run
from worker.cli.progress import tracked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from bench.contenders import Contender
    from bench.ledgers import Ledger, Ledgers
    from bench.options import Options
    from bench.parts import Parts
    from bench.running import Environment, Running

T = TypeVar("T")


class Notes:
    """What a part is asked, and what it has found."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.numbers: list[dict[str, Any]] = []

    def steps(self, of: Collection[T]) -> Iterator[T]:
        """Yield what is to be measured, one after the other, and show how far that is."""
        return tracked(of, self.options.part, len(of), console=console)

    def rounds(self) -> Iterator[int]:
        return self.steps(range(self.options.rounds))


class Bench(Notes):
    """One run of one part that measures speed."""

    def __init__(self, parts: Parts, ledgers: Ledgers, environment: Environment, options: Options) -> None:
        super().__init__(options)
        self.parts = parts
        self.ledgers = ledgers
        self.environment = environment

    def contenders(self, *, default: Sequence[str] = tuple(CONTENDERS), queues_only: bool = False) -> list[Contender]:
        """Return ours and the chosen others."""
        names = self.options.only or default
        chosen = [CONTENDERS[name] for name in CONTENDERS if name in names or name == OURS.name]
        return [contender for contender in chosen if contender.is_queue or not queues_only]

    def interleaved(self, contenders: Sequence[Contender]) -> Iterator[tuple[int, Contender]]:
        """Go round by round, each time with another one first, so that a slow minute hits no one alone."""
        order = []
        for number in range(self.options.rounds):
            first = number % len(contenders)
            order += [(number, contender) for contender in (*contenders[first:], *contenders[:first])]
        return self.steps(order)

    @contextmanager
    def working(self, contender: Contender, ledger: Ledger | None = None, **how: Any) -> Iterator[Running]:
        """Run a contender's workers on a ledger, or on a fresh one that is dropped afterwards."""
        own = ledger or self.ledgers.fresh(is_ours=contender.ours)
        try:
            with run(contender, own, self.environment, **how) as running:
                yield running
        finally:
            if ledger is None:
                self.ledgers.drop(own)

    def note(self, contender: Contender, number: int, **facts: Any) -> None:
        """Keep one measurement, and say it."""
        self.numbers.append({"contender": contender.name, "round": number, **facts})
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in facts.items() if isinstance(value, int | float))
        console.print(f"  round {number + 1}  {contender.name:<14} {shown}", highlight=False)

    def trying(self, contender: Contender, measure: Callable[[], None]) -> None:
        """Measure; a contender that comes to a halt is told and left out of this round."""
        try:
            measure()
        except StalledError as error:
            console.print(f"[red]{contender.name} came to a halt[/]\n{error}", markup=True)
            self.numbers.append({"contender": contender.name, "failed": str(error)})

    def values(self, contender: str, name: str, **where: Any) -> list[float]:
        """Return one number of every round, in the order of the rounds."""
        rows = [
            row
            for row in self.numbers
            if row["contender"] == contender and name in row and all(row.get(key) == at for key, at in where.items())
        ]
        return [row[name] for row in sorted(rows, key=lambda row: row["round"])]

    def complete(self, contenders: Sequence[Contender], name: str, **where: Any) -> list[str]:
        """Return the names of those that have a number for every round."""
        return [c.name for c in contenders if len(self.values(c.name, name, **where)) == self.options.rounds]


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
