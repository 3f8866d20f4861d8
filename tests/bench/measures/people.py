"""What people ask and do beside 2,000,000 ended rows: finding, lists by each filter, counts, holds; and `prune`.

The statements of a command are measured, as it opens the ledger; the start of its process is not.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from bench import crowd
from bench.contenders import OURS
from bench.measures import forget, indexes
from bench.report import Spread, Verdict, print_table
from worker.cancellation.status import Evidence, SafeToRefund, Status
from worker.cancellation.status import Verdict as Known
from worker.ledger import audit, batches, connections, filters, freshness, holds, outcomes, queries, retention
from worker.ledger.audit import Action
from worker.ledger.database import open_ledger, read_only
from worker.ledger.filters import Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from bench.bench import Bench
    from worker.ledger.filters import Page

FIND_MS = 50.0
FINDS = 21  # of different orders
PAGES = 4
DAY = 86_400.0
OLD_BATCH = "file-0.csv-0123456789ab"

LISTS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "status: succeeded": {"status": (Status.SUCCEEDED,)},
    "status: rejected, one in twenty": {"status": (Status.REJECTED,)},
    "status: withdrawn, one in 5,000": {"status": (Status.WITHDRAWN,)},
    "status: pending": {"status": (Status.PENDING,)},
    "status: waiting": {"status": (Status.WAITING,)},
    "verdict: cancelled": {"verdict": (Known.CANCELLED,)},
    "verdict: not_cancelled": {"verdict": (Known.NOT_CANCELLED,)},
    "verdict: unknown, one in 20,000": {"verdict": (Known.UNKNOWN,)},
    "refund: yes": {"refund": SafeToRefund.YES},
    "refund: no": {"refund": SafeToRefund.NO},
    "refund: not yet": {"refund": SafeToRefund.NOT_YET},
    "reason: already_shipped": {"reason": "already_shipped"},
    "reason: one in 100,000": {"reason": "not_supported"},
    "evidence: response": {"evidence": (Evidence.RESPONSE,)},
    "evidence: person, one in 50,000": {"evidence": (Evidence.PERSON,)},
    "connection": {"connection_id": "c-1"},
    "connection with ten rows": {"connection_id": f"c-{crowd.OTHERS}"},
    "connection, and rejected": {"connection_id": "c-1", "status": (Status.REJECTED,)},
    "connection, and a reason it never has": {"connection_id": "c-1", "reason": "nothing"},
    "requested by: nearly all": {"requested_by": "oms"},
    "requested by: one in 1,000": {"requested_by": "anna"},
    "requested by: nobody": {"requested_by": "nobody"},
    "metadata: one in twenty": {"metadata": {"channel": "web"}},
    "metadata: one row, a year old": {"metadata": {"ticket": "T-3"}},
    "batch": {"batch": OLD_BATCH},
    "batch, and rejected": {"batch": OLD_BATCH, "status": (Status.REJECTED,)},
    "age: older than 200 days": {"older_than": 200 * DAY},
    "age: newer than an hour": {"newer_than": 3600.0},
    "received: a day in spring": {"older_than": 200 * DAY, "newer_than": 201 * DAY},
    "needs a person": {"needs_person": True},
}


def run(bench: Bench) -> list[Verdict]:
    ledger = bench.ledgers.fresh(is_ours=True)
    crowd.fill(ledger.engine, bench.options.rows)
    # As commands open it: most of them so, and those about connections so.
    by_index, plain = (open_ledger(ledger.url, pool_size=1, by_index=each) for each in (True, False))
    found = _find(bench, by_index)
    _list(bench, by_index)
    _act(
        bench,
        [(by_index, read_only, _QUESTIONS), (plain, read_only, _ABOUT_CONNECTIONS), (plain, Engine.begin, _ACTS)],
    )
    by_index.dispose()
    plain.dispose()
    indexes.run(bench, ledger)
    beside = forget.run(bench, ledger)
    bench.ledgers.drop(ledger)
    return [*found, *beside]


def _find(bench: Bench, engine: Engine) -> list[Verdict]:
    chosen = random.Random(1)
    numbers = [chosen.randrange(1, bench.options.rows) for _ in range(FINDS)]
    found: dict[str, list[float]] = {}
    with read_only(engine) as db:
        ids = [filters.find(db, Filter(order_id=f"order-{n}"))[0].id for n in numbers]
        for what, way in _WAYS.items():
            found[what] = [_ms(lambda n=n, i=i, way=way: way(db, n, i)) for n, i in zip(numbers, ids, strict=True)]
            bench.numbers.append({"contender": OURS.name, "find": what, "ms": found[what]})
    rows = [[what, Spread.of(times)] for what, times in found.items()]
    print_table("Found, ms", ("by", f"of {FINDS} orders"), rows)
    return [
        Verdict(what=f"find by {what}, the slowest, ms", value=Spread.of([max(times)]), target=FIND_MS, at_least=False)
        for what, times in found.items()
    ]


def _finding(**which: str) -> Callable[[Connection, int, str], Any]:
    return lambda db, n, _id: filters.find(db, Filter(**{name: form.format(n) for name, form in which.items()}))


_WAYS: Mapping[str, Callable[[Connection, int, str], Any]] = {
    "order id": _finding(order_id="order-{}"),
    "reference id, in another case": _finding(reference="ref-{}"),
    "order number, without its #": _finding(order_number="{}"),
    "any of them": _finding(name="#{}"),
    "a name that nothing has": lambda db, n, _id: not filters.find(db, Filter(name=f"nobody-{n}")),
    "cancellation id, with its timeline": lambda db, _n, record_id: queries.timeline(db, record_id, snapshot=True),
}


def _ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    assert work(), "nothing was found, or done"
    return (time.perf_counter() - began) * 1000


def _list(bench: Bench, engine: Engine) -> None:
    shown = []
    for what, words in bench.steps(LISTS.items()):
        with read_only(engine) as db:
            rounds = [_pages(db, Filter(**words)) for _ in range(bench.options.rounds)]
        first, later = [each[0][0] for each in rounds], [each[-1][0] for each in rounds if len(each) > 1]
        bench.numbers.append({"contender": OURS.name, "list": what, "first_ms": first, "later_ms": later})
        page = rounds[0][0][1]
        found = f"{len(page.found)}{', gave up' if page.looked_back_to else ''}"
        shown.append([what, found, Spread.of(first), Spread.of(later) if later else "none"])
    print_table("`list`, ms a page of 50", ("filter", "found", "first page", f"page {PAGES}, or the last"), shown)


def _pages(db: Connection, which: Filter) -> list[tuple[float, Page]]:
    """Return the first pages, each with the milliseconds that it took."""
    pages: list[tuple[float, Page]] = []
    while not pages or (len(pages) < PAGES and pages[-1][1].after):
        began = time.perf_counter()
        page = filters.find_page(db, which, after=pages[-1][1].after if pages else None)
        pages.append(((time.perf_counter() - began) * 1000, page))
    return pages


def _act(bench: Bench, commands: Sequence[tuple[Engine, Any, Mapping[str, Callable[[Connection], Any]]]]) -> None:
    found: dict[str, list[float]] = {}
    for _ in bench.rounds():  # in turn: what is held is resumed before it is held again
        for engine, opened, works in commands:
            for what, work in works.items():
                found.setdefault(what, []).append(_ms(lambda e=engine, o=opened, w=work: _done(e, o, w)))
    bench.numbers += [{"contender": OURS.name, "command": what, "ms": times} for what, times in found.items()]
    rows = [[what, Spread.of(times)] for what, times in found.items()]
    print_table("Other commands", ("", "ms, with their commit"), rows)


def _done(engine: Engine, opened: Callable[[Engine], Any], work: Callable[[Connection], Any]) -> Any:
    with opened(engine) as db:
        return work(db)


def _shown(name: str) -> Callable[[Connection], Any]:
    asked = (connections.known, connections.affected, freshness.crawls_of, connections.last_success)
    return lambda db: [each(db, name) for each in asked]


def _written(action: Action, act: Callable[[Connection], object]) -> Callable[[Connection], object]:
    def work(db: Connection) -> object:
        audit.write(db, audit.By("bench", "measured"), action, audit.Kind.CONNECTION, "c-2")
        return act(db)

    return work


_QUESTIONS: Mapping[str, Callable[[Connection], Any]] = {
    "batches list": batches.find,
    "batches show, 2,000 rows": lambda db: batches.get(db, OLD_BATCH),
    "batches show, 20,000 rows that wait": lambda db: batches.get(db, crowd.WAITING_BATCH),
    "windows": outcomes.of_all,
    "windows --connection": lambda db: outcomes.of_connection(db, "c-1"),
    "windows --integration": lambda db: outcomes.of_integration(db, "SYSTEM-1"),
    "the warning of enqueue": lambda db: outcomes.of_same_system(db, "c-1"),
    "prune --dry-run": lambda db: retention.count_facts(db, 365 * DAY),
}
_ABOUT_CONNECTIONS: Mapping[str, Callable[[Connection], Any]] = {
    "connections list": connections.list_all,
    "connections show, held, 10,000 wait": _shown("c-0"),
    "connections show, open": _shown("c-1"),
}
_ACTS: Mapping[str, Callable[[Connection], Any]] = {
    "connections hold": _written(Action.HOLD, lambda db: holds.hold_by_operator(db, "c-2")),
    "connections resume": _written(Action.RESUME, lambda db: holds.resume(db, ["c-2"], holds.ALL)),
    # As each worker asks when it has come to the end of what is old enough.
    "prune, nothing is old enough": lambda db: (
        retention.prune_facts(db, 1000 * DAY),
        retention.prune_documents(db, 1000 * DAY),
    ),
}
