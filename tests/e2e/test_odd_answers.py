"""Answers in odd forms, through a whole worker: each order gets its own answer, understood or looked up at once."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from harness.certificates import Tls
from harness.raw_server import RawServer, whole
from harness.settings import SHORT

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment

pytestmark = pytest.mark.deployment(ledgers=["sqlite"], settings=SHORT, writes_per_second=None, reads_per_second=None)
# One request thread, so one connection: an answer too many would be the next order's.
ONE = SHORT | {"CONCURRENCY": "1", "NOT_FOUND_GRACE_SECONDS": "0"}


class Case(msgspec.Struct, frozen=True):
    """One order, how its cancel is answered, and how it must end. One write each, never a repetition."""

    order_id: str
    script: str
    trail: tuple[str, ...]  # the reasons of its requests
    ends: tuple[str, str, str] = ("succeeded", "cancelled", "response")
    really: str = "cancelled"


FOUND = ("succeeded", "cancelled", "read_back")
REFUSED = ("rejected", "not_cancelled", "fresh_read_back")
CASES = [
    *(
        Case(f"A-{coding}", f"coded:{coding}", ("accepted",))
        for coding in ("gzip", "deflate", "raw_deflate", "unlabelled_gzip", "mark", "utf-16")
    ),
    Case("A-br", "coded:br", ("not_json", "read_cancelled"), FOUND),
    Case("00123", "shown:number", ("accepted",)),
    Case("456", "shown:number", ("accepted",)),
    Case("caf\u00e9", "shown:nfd", ("accepted",)),
    Case("cafe\u0301-2", "shown:nfc", ("accepted",)),
    Case("small", "shown:upper", ("accepted",)),
    Case("A-204", "bare:204", ("accepted", "read_cancelled"), FOUND),
    Case("A-200", "bare:200", ("unexpected_body", "read_cancelled"), FOUND),
    Case("A-wrong", "wrong_id", ("wrong_order_in_answer", "read_cancelled"), FOUND),
    Case("A-cut", "cut", ("cut_body", "read_cancelled"), FOUND),
    Case("A-error", "failing", ("error_in_answer", "read_open"), REFUSED, "open"),
    Case("A-error-2", "failing:trackstar", ("error_in_answer", "read_open"), REFUSED, "open"),
    Case("A-error-3", "applied_then:failing", ("error_in_answer", "read_cancelled"), FOUND),
    Case("A-103", "interim:103:0.1", ("accepted",)),
    Case("A-100", "interim:100", ("accepted",)),
    Case("A-102", "interim:102", ("accepted",)),
]


def wait_for_the_end_of(deployment: Deployment, ids: list[str]) -> None:
    def all_ended() -> bool:
        ended = {each.id for each in deployment.all() if each.ended and not each.confirm_at}
        return ended >= set(ids)

    deployment.wait_until(all_ended, "every end")


def reasons(deployment: Deployment, record: str) -> tuple[str, ...]:
    return tuple(reason for reason, _ in groupby(row["reason"] for row in deployment.timeline(record).attempts))


def test_an_answer_in_an_odd_form_is_understood_or_its_order_is_read_at_once(
    deployment: Deployment, shop: str, subtests: pytest.Subtests
) -> None:
    for case in CASES:
        reads = ["fresh"] if "applied" in case.script else []
        deployment.trackstar.add_order(shop, case.order_id, script=[case.script], reads=reads)
    deployment.start_worker().wait_until_ready()
    ids = deployment.client.enqueue_many({"connection_id": shop, "order_id": case.order_id} for case in CASES)
    wait_for_the_end_of(deployment, ids)

    for case, record in zip(CASES, ids, strict=True):
        with subtests.test(case=case.script):
            ended, truth = deployment.record(record), deployment.trackstar.order(shop, case.order_id).truth
            assert case.ends == (ended.status, ended.verdict, ended.evidence)
            assert case.trail == reasons(deployment, record)
            assert case.really == truth.status
            assert 1 == len([request for request in truth.requests if request.kind == "cancel"])


@pytest.mark.parametrize(
    "script",
    ["interim:103:0.4", "interim:100:0.4", "interim:102", "trailed", "trailed:0.05", "coded:br", "bare:204"],
)
@pytest.mark.deployment(ledgers=["sqlite"], settings=ONE, writes_per_second=None, reads_per_second=None)
def test_an_answer_is_given_to_no_other_order(deployment: Deployment, shop: str, script: str) -> None:
    # Trackstar does not know of the odd ones so far: its answer for each is a 404.
    for number in range(3):
        synced: dict[str, Any] = {"script": [script], "synced": False}
        deployment.trackstar.add_order(shop, f"odd-{number}", **synced)
        deployment.trackstar.add_order(shop, f"next-{number}", script=["slow:0.2+ok"], reads=["fresh"] * 9)
    deployment.start_worker().wait_until_ready()
    ids = deployment.client.enqueue_many(
        {"connection_id": shop, "order_id": f"{kind}-{number}"} for number in range(3) for kind in ("odd", "next")
    )
    wait_for_the_end_of(deployment, ids)

    for record in ids:
        ended = deployment.record(record)
        really = deployment.trackstar.order(shop, ended.order_id).truth.status
        assert ("cancelled" if ended.order_id.startswith("next") else "open") == really
        assert ended.verdict != ("not_cancelled" if really == "cancelled" else "cancelled")
        if really == "cancelled":
            assert "cancelled" == ended.verdict


def test_a_certificate_that_is_not_trusted_is_named_and_a_bundle_helps(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    tls = Tls(tmp_path)
    yes = whole(b'{"data": {"id": "A", "status": "cancelled"}, "id": "A"}')
    with RawServer(yes, tls=tls.context) as server:
        address = server.url.replace("http:", "https:")
        record = deployment.client.enqueue(connection_id=shop, order_id="A")
        worker = deployment.start_worker(TRACKSTAR_BASE_URL=address)
        worker.wait_for_line("cancellation.tls_failed")
        deployment.wait_until(lambda: "self-signed" in str(deployment.timeline(record).attempts), "its reason")
        assert [] == server.heads
        worker.stop()
        deployment.start_worker(TRACKSTAR_BASE_URL=address, CA_BUNDLE=str(tls.bundle))
        deployment.wait_until(lambda: deployment.record(record).ended, "its end")

    assert ("succeeded", "cancelled") == (deployment.record(record).status, deployment.record(record).verdict)
