"""What people ask and do beside 2,000,000 ended rows: finding, lists by each filter, counts, holds; and `prune`.

The statements of a command are measured, as it opens the ledger; the start of its process is not.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench import crowd
from bench.contenders import OURS
from bench.measures import forget, indexes
from bench.report import Spread, Verdict, print_table
from worker.cancellation.status import Evidence, SafeToRefund, Status, Verdict as Known
from worker.ledger import audit, batches, connections, filters, freshness, holds, outcomes, queries, retention
from worker.ledger.database import open_ledger, read_only
from worker.ledger.filters import Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Engine

    from bench.bench import Bench

FIND_MS = 50.0
FINDS = 21  # of different orders
PAGES = 4
DAY = 86_400.0

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
    "batch": {"batch": "file-0.csv-0123456789ab"},
    "batch, and rejected": {"batch": "file-0.csv-0123456789ab", "status": (Status.REJECTED,)},
    "age: older than 200 days": {"older_than": 200 * DAY},
    "age: newer than an hour": {"newer_than": 3600.0},
    "received: a day in spring": {"older_than": 200 * DAY, "newer_than": 201 * DAY},
    "needs a person": {"needs_person": True},
}


def run(bench: Bench) -> list[Verdict]:
    ledger = bench.ledgers.fresh(is_ours=True)
    crowd.fill(ledger.engine, bench.options.rows)
    engine = open_ledger(ledger.url, pool_size=1, by_index=True)  # as a command does
    try:
        found = _find(bench, engine)
        _list(bench, engine)
        _act(bench, engine)
    finally:
        engine.dispose()
    indexes.run(bench, ledger)
    beside = forget.run(bench, ledger)
    bench.ledgers.drop(ledger)
    return [*found, *beside]


def _find(bench: Bench, engine: Engine) -> list[Verdict]:
    chosen = random.Random(1)  # noqa: S311 - no secret
    numbers = [chosen.randrange(1, bench.options.rows) for _ in range(FINDS)]
    with read_only(engine) as db:
        ids = list(
            db.execute(text("SELECT id FROM cancellations ORDER BY id LIMIT :n OFFSET 1000"), {"n": FINDS}).scalars()
        )
        ways: dict[str, Callable[[int], Any]] = {
            "order id": lambda n: filters.find_page(db, Filter(order_id=f"order-{numbers[n]}")).found,
            "reference id, in another case": lambda n: (
                filters.find_page(db, Filter(reference=f"ref-{numbers[n]}")).found
            ),
            "order number, without its #": lambda n: filters.find_page(db, Filter(order_number=f"{numbers[n]}")).found,
            "any of them": lambda n: filters.find_page(db, Filter(name=f"#{numbers[n]}")).found,
            "nothing": lambda n: not filters.find_page(db, Filter(name=f"nobody-{numbers[n]}")).found,
            "cancellation id, with its timeline": lambda n: queries.timeline(db, str(ids[n]), snapshot=True),
        }
        for what, way in ways.items():
            times = [_ms(lambda n=n, way=way: way(n)) for n in range(FINDS)]
            bench.numbers.append({"contender": OURS.name, "find": what, "ms": times})
    rows = [(row["find"], row["ms"]) for row in bench.numbers if "find" in row]
    print_table("Found, ms", ("by", f"of {FINDS} orders"), [[what, Spread.of(times)] for what, times in rows])
    return [
        Verdict(what=f"find: {what}, ms, the slowest", value=Spread.of([max(times)]), target=FIND_MS, at_least=False)
        for what, times in rows
    ]


def _ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    assert work(), "nothing was found"
    return (time.perf_counter() - began) * 1000


def _list(bench: Bench, engine: Engine) -> None:
    shown = []
    for what, words in LISTS.items():
        first, later, last = [], [], None
        for _ in range(bench.options.rounds):
            with read_only(engine) as db:
                pages = [_page(db, words, None)]
                while len(pages) < PAGES and pages[-1][1].after:
                    pages.append(_page(db, words, pages[-1][1].after))
            first.append(pages[0][0])
            later += [pages[-1][0]] if len(pages) > 1 else []
            last = pages[0][1]
        bench.numbers.append({"contender": OURS.name, "list": what, "first_ms": first, "later_ms": later})
        gave_up = " and gave up" if last.looked_back_to else ""
        shown.append([what, f"{len(last.found)}{gave_up}", Spread.of(first), Spread.of(later) if later else "none"])
    print_table("`list`, ms a page of 50", ("filter", "found", "first page", f"page {PAGES}, or the last"), shown)


def _page(db: Connection, words: Mapping[str, Any], after: str | None) -> tuple[float, filters.Page]:
    began = time.perf_counter()
    page = filters.find_page(db, Filter(**words), after=after)
    return (time.perf_counter() - began) * 1000, page


def _act(bench: Bench, engine: Engine) -> None:
    questions: dict[str, Callable[[Connection], Any]] = {
        "batches list": batches.find,
        "batches show, 2,000 rows": lambda db: batches.get(db, "file-0.csv-0123456789ab"),
        "batches show, 20,000 rows that wait": lambda db: batches.get(db, "waits.csv-0123456789ab"),
        "windows": outcomes.of_all,
        "windows --connection": lambda db: outcomes.of_connection(db, "c-1"),
        "windows --integration": lambda db: outcomes.of_integration(db, "SYSTEM-1"),
        "the warning of enqueue": lambda db: outcomes.of_same_system(db, "c-1"),
        "connections list": connections.list_all,
        "connections show, held, 10,000 wait": lambda db: _show(db, "c-0"),
        "connections show, open": lambda db: _show(db, "c-1"),
        "prune --dry-run": lambda db: retention.count_facts(db, 365 * DAY),
    }
    acts: dict[str, Callable[[Connection], Any]] = {
        "connections hold": lambda db: _written(db, audit.Action.HOLD, holds.hold_by_operator(db, "c-2")),
        "connections resume": lambda db: _written(db, audit.Action.RESUME, holds.resume(db, ["c-2"], holds.ALL)),
        # At the end of what is old enough, as a worker asks each ten minutes.
        "prune, nothing is old enough": lambda db: (
            retention.prune_facts(db, 1000 * DAY) and not retention.prune_documents(db, 1000 * DAY)
        ),
    }
    shown = []
    for what, work, opened in [
        (what, work, how)
        for how, works in ((read_only, questions), (type(engine).begin, acts))
        for what, work in works.items()
    ]:
        times = [_ms(lambda o=opened, w=work: _done(engine, o, w)) for _ in range(bench.options.rounds)]
        bench.numbers.append({"contender": OURS.name, "command": what, "ms": times})
        shown.append([what, Spread.of(times)])
    print_table("Other commands, ms", ("", "with their commit"), shown)


def _done(engine: Engine, opened: Callable[[Engine], Any], work: Callable[[Connection], Any]) -> Any:
    with opened(engine) as db:
        return work(db)


def _show(db: Connection, name: str) -> Any:
    return (
        connections.known(db, name),
        connections.affected(db, name),
        freshness.crawls_of(db, name),
        connections.last_success(db, name),
    )


def _written(db: Connection, action: audit.Action, done: object) -> object:
    audit.write(db, audit.By("bench", "measured"), action, audit.Kind.CONNECTION, "c-2")
    return done
