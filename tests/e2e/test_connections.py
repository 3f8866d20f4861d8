"""What an operator does with connections from the command line, beside a worker that runs; and what `doctor` says."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet
from harness.commands import run
from harness.deployment import token_of
from harness.truth import record_id

if TYPE_CHECKING:
    from harness.deployment import Deployment, MakeDeployment

    from worker.ledger.vault import TokenVault

NEW = "rotated-token-of-shop-1"


def cancel(deployment: Deployment, order_id: str) -> str:
    deployment.trackstar.add_order("shop-1", order_id)
    return str(deployment.client.enqueue("shop-1", order_id))


def test_a_token_rotated_by_command_ends_the_hold_and_lets_what_waited_go(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.connect(shop, NEW)  # the old one answers 401 from now on
    deployment.start_worker()
    waits = cancel(deployment, "o-1")
    deployment.wait_until(lambda: deployment.hold_of(shop) == "credentials", "the hold")
    code, said = run(deployment, "connections", "rotate", shop, typed=f"{NEW}\n".encode())

    assert (0, "Connection shop-1 has a new token.\n") == (code, said)
    assert "succeeded" == deployment.client.wait(waits, 30).status
    assert deployment.hold_of(shop) is None


def test_what_an_operator_holds_waits_until_it_is_resumed(deployment: Deployment, shop: str) -> None:
    deployment.start_worker().wait_until_ready()
    assert 0 == run(deployment, "connections", "hold", shop)[0]
    waits = cancel(deployment, "o-1")
    deployment.wait_until(lambda: deployment.client.get(waits), "its record")
    code, said = run(deployment, "show", waits)

    assert 0 == code
    assert "held" in said
    assert "pending" == deployment.record(waits).status
    assert 0 == deployment.trackstar.traffic(shop).writes

    assert (0, "Connection shop-1 goes on.\n") == run(
        deployment, "connections", "resume", shop, "--reason", "open again"
    )
    assert "succeeded" == deployment.client.wait(waits, 30).status
    assert (0, "Connection shop-1 was not held.\n") == run(
        deployment, "connections", "resume", shop, "--reason", "open again"
    )


def test_a_connection_is_removed_only_when_nothing_waits_or_by_force(deployment: Deployment, shop: str) -> None:
    deployment.start_worker()
    assert 0 == run(deployment, "connections", "hold", shop)[0]
    waits = cancel(deployment, "o-1")
    deployment.wait_until(lambda: deployment.client.get(waits), "its record")
    code, said = run(deployment, "connections", "remove", shop, "--reason", "left us")

    assert 2 == code
    assert "1 cancellations of shop-1 have not ended" in " ".join(said.split())

    assert 0 == run(deployment, "connections", "remove", shop, "--force", "--reason", "left us")[0]
    assert 2 == run(deployment, "connections", "resume", shop, "--reason", "open again")[0]
    assert "pending" == deployment.record(waits).status

    assert 0 == run(deployment, "connections", "add", shop, typed=f"{token_of(shop)}\n".encode())[0]
    assert "succeeded" == deployment.client.wait(waits, 30).status


@pytest.mark.usefixtures("shop")
def test_an_old_key_can_go_once_every_token_is_encrypted_with_the_new_one(deployment: Deployment) -> None:
    old, new = deployment.env["CREDENTIAL_KEYS"], Fernet.generate_key().decode()
    deployment.env["CREDENTIAL_KEYS"] = f"{new},{old}"
    assert (0, "1 token is encrypted with the first key.\n") == run(deployment, "connections", "rekey")
    deployment.env["CREDENTIAL_KEYS"] = new
    deployment.start_worker()

    assert "succeeded" == deployment.client.wait(cancel(deployment, "o-1"), 30).status

    deployment.env["CREDENTIAL_KEYS"] = old
    code, said = run(deployment, "doctor")
    assert 1 == code
    assert "its token cannot be read" in said


@pytest.mark.parametrize("as_list", [False, True], ids=["an object", "a list"])
def test_the_doctor_reads_either_documented_form_of_a_connection(
    make_deployment: MakeDeployment, vault: TokenVault, *, as_list: bool
) -> None:
    with make_deployment("sqlite", connections_as_list=as_list) as deployment:
        deployment.env["COLUMNS"] = "200"
        deployment.connect(vault, ["shop-1"])
        deployment.trackstar.connect("shop-1", integration_name="shiphero")
        well, said = run(deployment, "doctor")
        assert "shiphero, cancel available" in said
        assert 0 == well
        assert "✗" not in said

        deployment.trackstar.connect(
            "shop-1", available_actions=("get_orders",), errors=("The password has expired.",)
        )
        deployment.add_connection(vault, "shop-2", token_of("shop-2"))
        ill, said = run(deployment, "doctor")
        assert 1 == ill
        assert "Ask Trackstar to enable `cancel_order`" in said
        assert "The password has expired." in said
        assert "Trackstar knows no connection of this id" in said


def test_enqueue_and_show_tell_when_a_cancel_will_be_sent(deployment: Deployment, shop: str) -> None:
    deployment.env["WRITES_PER_SECOND"] = "2"
    deployment.start_worker().wait_until_ready()
    orders = [f"o-{number}" for number in range(60)]
    for order_id in orders:
        deployment.trackstar.add_order(shop, order_id)
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": each} for each in orders])
    deployment.wait_until(lambda: len(deployment.all()) == len(orders), "the backlog")
    deployment.trackstar.add_order(shop, "last")
    code, said = run(deployment, "enqueue", "last", "--connection", shop)

    assert 0 == code
    assert expected(said) > datetime.now(UTC) + timedelta(seconds=10)  # some forty ahead of it, two a second

    code, said = run(deployment, "show", record_id("last"))
    assert 0 == code
    assert expected(said) > datetime.now(UTC) + timedelta(seconds=8)


def expected(said: str) -> datetime:
    found = re.search(r"Expected to be sent (?:at|from) (\S+ \S+)", said)
    assert found, said
    return datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
