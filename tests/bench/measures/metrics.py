"""What counting costs: the CPU time of all that is counted of a job, of what the worker spends on one; and memory.

The counting is called here as the worker calls it, in batches as under load; what a job costs is measured beside it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from harness.answered import cancelled

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table, ratios
from worker.cancellation.lifecycle import State
from worker.ledger.claims import Lease, SendClaim
from worker.ledger.results import CommitSummary
from worker.runtime.counting import count_recorded
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from bench.bench import Bench
    from worker.ledger.results import AttemptResult

WARM = 400
BATCH = 50  # results in one commit, claims in one message
BATCHES = 400
_MEMORY = """
import psutil, http.server, requests, ssl, wsgiref.simple_server
import celery.app.base, worker.ledger.results, worker.runtime.attempt
me = psutil.Process()
before = me.memory_info().rss
from worker.telemetry.metrics import Metrics
metrics = Metrics()
for status in (200, 404, 429, 500, 503):
    metrics.request("api", "PUT", "/wms/orders/{order_id}/cancel", status, "", 0.1)
    metrics.request("api", "GET", "/wms/orders/{order_id}", status, "", 0.1)
metrics.render()
print(me.memory_info().rss - before)
"""


def run(bench: Bench) -> list[Verdict]:
    for number, contender in bench.interleaved([OURS]):
        bench.trying(contender, lambda n=number: _measure(bench, n))
    counting, job = (bench.values(OURS.name, name) for name in ("counting", "job"))
    memory = Spread.of([megabytes / 1e6 for megabytes in bench.values(OURS.name, "memory")])
    rows = [
        ["counting", Spread.of([1e6 * each for each in counting])],
        ["a job", Spread.of([1e6 * each for each in job])],
    ]
    print_table("CPU of a worker, us per job", ("", "us"), rows)
    return [
        Verdict(what="counting ÷ a job's CPU", value=ratios(counting, job), target=0.01, at_least=False),
        Verdict(what="memory, MB", value=memory, target=5.0, at_least=False),
    ]


def _measure(bench: Bench, number: int) -> None:
    with bench.working(OURS) as running:
        rate = running.measure(WARM, delay=0.0).rate
        measured = running.measure(bench.options.lot(rate), delay=0.0)
    told = subprocess.run([sys.executable, "-c", _MEMORY], check=True, capture_output=True)
    cpu = measured.worker_cpu / measured.jobs
    bench.note(OURS, number, counting=seconds_of_counting(), job=cpu, memory=int(told.stdout))


def seconds_of_counting() -> float:
    """Return the CPU seconds of counting one job, from its claim to its end."""
    metrics = Metrics()
    results, ids = _results()
    summary = CommitSummary(applied=ids, held=frozenset(), resumed=frozenset())
    began = time.process_time()
    for _ in range(BATCHES):
        metrics.claim_batch.observe(BATCH)
        metrics.slots_used("write", BATCH)
        for _ in results:
            metrics.request("api", "PUT", "/wms/orders/{order_id}/cancel", 200, "", 0.05)
        count_recorded(metrics, results, summary)
        metrics.record_batch.observe(0.01)
    return (time.process_time() - began) / (BATCHES * BATCH)


def _results() -> tuple[list[AttemptResult], frozenset[str]]:
    now = datetime.now(UTC)
    claims = [
        SendClaim(
            lease=Lease(f"id-{number}", "me", 1),
            connection_id="shop",
            order_id=f"o-{number}",
            generation=1,
            claimed_at=now,
            encrypted_token=None,
            hold_reason=None,
            requested_at=now - timedelta(seconds=1),
            state=State(attempts=0, first_sent_at=now, received_at=now - timedelta(seconds=1)),
        )
        for number in range(BATCH)
    ]
    return [cancelled(claim) for claim in claims], frozenset(claim.id for claim in claims)
