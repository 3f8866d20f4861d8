"""Tokens bound to their connections, with real workers: one that was moved sends nothing, and `rekey` binds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.commands import run
from harness.deployment import token_of
from sqlalchemy import text

from worker.ledger import connections
from worker.ledger.vault import is_bound, of_connection
from worker.runtime.known_keys import NAMES

if TYPE_CHECKING:
    from harness.deployment import Deployment

    from worker.ledger.vault import TokenVault

STOLEN = (
    "UPDATE connections SET access_token = (SELECT access_token FROM connections WHERE id = 'rich') WHERE id = :id"
)


def connect(deployment: Deployment, vault: TokenVault, *names: str) -> None:
    """Make connections whose tokens are bound to them."""
    for name in names:
        deployment.trackstar.connect(name, token_of(name))
        deployment.trackstar.add_order(name, "o-1")
        with deployment.ledger.begin() as db:
            connections.add(db, name, vault.encrypt(token_of(name), of_connection(name)))


def test_a_token_that_was_moved_to_another_row_is_not_used(deployment: Deployment, vault: TokenVault) -> None:
    connect(deployment, vault, "rich", "poor")
    with deployment.ledger.begin() as db:
        db.execute(text(STOLEN), {"id": "poor"})
    worker = deployment.start_worker()
    waits, ends = (deployment.client.enqueue(name, "o-1") for name in ("poor", "rich"))

    assert "succeeded" == deployment.client.wait(ends, 30).status
    deployment.wait_until(lambda: deployment.hold_of("poor") == "credentials", "the hold")
    problem = worker.told("connection.token_unreadable")
    assert "poor" == problem["connection_id"]
    assert "was encrypted for another connection" in problem["problem"]
    assert [] == deployment.trackstar.order("rich", "o-1").requests[1:]
    assert deployment.record(waits).ended_at is None

    code, said = run(deployment, "doctor", "--json")
    assert (1, True) == (code, "was encrypted for another connection" in said)
    assert 2 == run(deployment, "connections", "rekey")[0]  # binds it to no row that it was moved to

    rotated = run(deployment, "connections", "rotate", "poor", typed=token_of("poor").encode())
    assert 0 == rotated[0]
    assert "succeeded" == deployment.client.wait(waits, 30).status


def test_a_rekey_binds_under_a_running_worker_and_refuses_beside_one_that_could_not_read(
    deployment: Deployment, shop: str
) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    deployment.redis.set(f"{NAMES}older", deployment.redis.get(_told(deployment)).split(b",")[0])
    refused, said = run(deployment, "connections", "rekey")

    assert 2 == refused
    assert "older would read no token any more, as a worker of a release before 0.2" in said.replace("\n", " ")

    deployment.redis.delete(f"{NAMES}older")
    assert 0 == run(deployment, "connections", "rekey")[0]
    with deployment.ledger.connect() as db:
        assert all(map(is_bound, connections.encrypted_tokens(db).values()))
    deployment.trackstar.add_order(shop, "o-1")
    assert "succeeded" == deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30).status


def _told(deployment: Deployment) -> bytes:
    deployment.wait_until(lambda: deployment.redis.keys(f"{NAMES}*"), "what a worker knows")
    (name,) = deployment.redis.keys(f"{NAMES}*")
    return bytes(name)
