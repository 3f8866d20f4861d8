"""What `worker.testing` promises an OMS's tests of each outcome is what a real worker makes of the same answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.settings import SHORT

from worker.testing.sandbox import OUTCOMES

if TYPE_CHECKING:
    from harness.deployment import Deployment

    from worker.client import CancelClient
    from worker.testing.sandbox import TrackstarSandbox

pytest_plugins = ["worker.testing"]

SETTINGS = SHORT | {
    "RETRY_CAP_SECONDS": "2",
    "RETRY_HORIZON_SECONDS": "24",
    "READ_BACK_SECONDS": "600",
    "NOT_FOUND_GRACE_SECONDS": "3",
}
DONE_SECONDS = 90.0

Ended = dict[str, tuple[str, str | None, str | None, str]]


def ended(client: CancelClient, ids: dict[str, str], seconds: float | None) -> Ended:
    found = {outcome: client.wait(cancellation_id, seconds) for outcome, cancellation_id in ids.items()}
    return {name: (each.status, each.verdict, each.evidence, each.safe_to_refund) for name, each in found.items()}


@pytest.mark.deployment(ledgers=("sqlite",), settings=SETTINGS, shops=tuple(OUTCOMES))
@pytest.mark.usefixtures("shop")
def test_each_outcome_ends_as_with_a_real_worker(
    deployment: Deployment, trackstar_sandbox: TrackstarSandbox, cancel_client: CancelClient
) -> None:
    for outcome, options in OUTCOMES.items():  # each on a connection of its own, for one of them is held
        trackstar_sandbox.answers(f"order {outcome}", outcome)
        if options is not None:
            deployment.trackstar.add_order(outcome, f"order {outcome}", **options)
    deployment.start_worker()

    real = {each: deployment.client.enqueue(each, f"order {each}") for each in OUTCOMES}
    simulated = {each: cancel_client.enqueue(each, f"order {each}") for each in OUTCOMES}

    assert real == simulated
    assert ended(deployment.client, real, DONE_SECONDS) == ended(cancel_client, simulated, None)
