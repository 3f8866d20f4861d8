"""What `doctor` says of proof: how fresh the copies are, what waits for a person, how often a verdict was wrong.

Knows what the ledger keeps; asks Trackstar nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.freshness import broken
from worker.cli.doctor.finding import Finding
from worker.cli.parts import opened_ledger
from worker.cli.words import connection_called, in_few_words
from worker.ledger import connections, freshness, outlook, queries
from worker.ledger.database import read_only

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from worker.cancellation.freshness import Crawls
    from worker.ledger.outlook import FalseVerdicts
    from worker.settings import Settings

MAX_TOLD = 50  # connections
REMEDIES_OF_CRAWLS = {
    "crawls_disabled": "Ask Trackstar to enable its crawls of orders; until then a person looks into the warehouse.",
    "crawls_failing": "See what Trackstar reports of the connection above, and correct it there.",
    "crawls_overdue": "Ask Trackstar why no crawl has ended for two periods.",
}


def proof_findings(settings: Settings) -> Iterator[Finding]:
    """Say of each connection whose crawls do not come what to do, and how many verdicts were contradicted."""
    try:
        with opened_ledger(settings.database_url, by_index=True) as ledger, read_only(ledger) as db:
            crawls, now = freshness.crawls_of_all(db), queries.now(db)
            told = [(name, problem) for name, each in sorted(crawls.items()) if (problem := broken(each, now))]
            people = connections.people_of(db, [name for name, _ in told[:MAX_TOLD]])
            waiting = outlook.count_for_a_person(db)
            counted = outlook.false_verdicts(db, settings.policy.watch)
    except SQLAlchemyError:
        return  # told of the ledger
    yield from _crawls(crawls, told, people, now)
    if waiting:
        yield Finding("Proof", f"{waiting} need a person", "See `cancel-worker list --needs-person`.", passing=True)
    said = f"{_rate(counted)} in {settings.watch_days:g} days"
    yield Finding("Proof", said, passing=counted.contradicted > 0)


def _rate(counted: FalseVerdicts) -> str:
    more, below = ("", "") if counted.counted_all else ("more than ", "below ")
    said = f"{counted.contradicted} verdicts contradicted of {more}{counted.cancelled} cancelled"
    return f"{said} ({below}{counted.contradicted / counted.cancelled:.4%})" if counted.cancelled else said


def _crawls(
    crawls: Mapping[str, Crawls],
    told: Sequence[tuple[str, str]],
    people: Mapping[str, tuple[str | None, str | None]],
    now: datetime,
) -> Iterator[Finding]:
    for name, problem in told[:MAX_TOLD]:
        part = f"Connection {connection_called(name, *people[name])}"
        yield Finding(part, in_few_words(crawls[name], now), REMEDIES_OF_CRAWLS[problem], passing=True)
    if len(told) > MAX_TOLD:
        yield Finding("Connections", f"{len(told) - MAX_TOLD} more whose crawls do not come", passing=True)
    unknown = sum(not each.known and not broken(each, now) for each in crawls.values())
    if unknown:
        yield Finding("Connections", f"of {unknown} Trackstar does not tell its crawls: READ_BACK_SECONDS decide")
