"""What may be asked of a run of the bench."""

from __future__ import annotations

from pathlib import Path

import msgspec

WORKERS = (1, 2, 4, 10)  # processes that `scale` tries


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line, read."""

    part: str
    jobs: int | None  # at most so many in one lot
    rounds: int
    seconds: float  # how long one lot should take
    only: tuple[str, ...]
    peers_scripts: Path
    output: Path
    rows: int  # ended rows of `flat` and `people`
    seed: int  # of `proof`
    workers: tuple[int, ...]  # processes of `scale`

    def lot(self, rate: float) -> int:
        """How many jobs make one lot, at a rate seen while warming up."""
        wanted = max(100, round(rate * self.seconds))
        return min(wanted, self.jobs) if self.jobs else wanted
