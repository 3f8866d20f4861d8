"""Receivers of every bad kind beside a healthy one, on a real worker.

Cancels end, the healthy one hears all, and what the others do not take waits for them.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from harness.certificates import Tls
from harness.hooks import ALLOWED, MONEY, Hook
from harness.raw_server import RawServer, whole
from harness.receiver import Received, Receiver
from harness.truth import untruths, wait_for_ends

from worker.ledger import endpoints
from worker.ledger.vault import TokenVault
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.deployment import Deployment
    from harness.receiver import Answer

ORDERS = [f"o-{number}" for number in range(6)]
TRY_SECONDS = 15.0
PATIENCE_SECONDS = 60.0
pytestmark = pytest.mark.deployment(ledgers=("postgresql",), settings=ALLOWED)


def hangs(sock: socket.socket) -> None:
    sock.recv(1)  # until the other side has had enough


def drips(sock: socket.socket) -> None:
    with suppress(OSError):
        while True:
            sock.sendall(b"H")
            time.sleep(0.2)


def floods(head: bytes) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.sendall(head)
            for _ in range(64 * 16):
                sock.sendall(b"x" * 65_536)

    return play


def add(deployment: Deployment, vault: TokenVault, hook: Hook) -> str:
    with deployment.ledger.begin() as db:
        return endpoints.add(db, hook.url, vault.encrypt(hook.secret), types=hook.types)


def enqueue(deployment: Deployment, shop: str) -> list[str]:
    for order_id in ORDERS:
        deployment.trackstar.add_order(shop, order_id)
    return deployment.client.enqueue_many({"connection_id": shop, "order_id": order_id} for order_id in ORDERS)


def reasons(deployment: Deployment, id_: str) -> set[str]:
    with deployment.ledger.connect() as db:
        return {each.reason for each in endpoints.last_tries(db, id_, 50)}


def tried(deployment: Deployment, id_: str, reason: str) -> bool:
    """Whether it was tried with this end, and all wait for it."""
    return reason in reasons(deployment, id_) and waiting(deployment, id_) == len(ORDERS)


def waiting(deployment: Deployment, id_: str) -> int:
    with deployment.ledger.connect() as db:
        return endpoints.known(db, id_).waiting


def feed(deployment: Deployment) -> list[Any]:
    return [each.event for each in deployment.client.events(timeout=0.0)]


def hears_all(deployment: Deployment, hook: Hook) -> None:
    deployment.wait_until(lambda: not hook.missing(feed(deployment)), f"all at {hook.url}", PATIENCE_SECONDS)
    assert [] == hook.untruths(feed(deployment), most=1)


def test_beside_receivers_of_every_bad_kind_cancels_end_and_the_healthy_one_hears_all(
    deployment: Deployment, shop: str, vault: TokenVault
) -> None:
    kinds: dict[str, tuple[Any, str]] = {
        "hangs": (hangs, "timeout"),
        "drips": (drips, "timeout"),
        "a head of 64 MB": (floods(b"HTTP/1.1 200 OK\r\nx: "), "answer_too_large"),
        "500 and 64 MB": (floods(b"HTTP/1.1 500 Oops\r\nContent-Length: 67108864\r\n\r\n"), "http_500"),
        "is no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "no_http"),
    }
    with ExitStack() as stack:
        receiver, elsewhere = stack.enter_context(Receiver()), stack.enter_context(Receiver())
        moved = whole(b"", b"Location: " + elsewhere.url.encode(), b"Connection: close", status=b"307 Elsewhere")
        kinds["redirects"] = (moved, "http_307")
        healthy = Hook(receiver, "/healthy")
        add(deployment, vault, healthy)
        bad = {}
        for kind, (play, _) in kinds.items():
            server = stack.enter_context(RawServer(*[play] * 200))
            with deployment.ledger.begin() as db:
                bad[kind] = endpoints.add(db, server.url, vault.encrypt(healthy.secret), types=MONEY)
        unreadable = Hook(receiver, "/unreadable", MONEY)
        other = add(deployment, TokenVault([Fernet.generate_key().decode()]), unreadable)
        worker = deployment.start_worker()
        wait_for_ends(deployment, enqueue(deployment, shop))
        hears_all(deployment, healthy)
        for kind, (_, reason) in kinds.items():
            deployment.wait_until(partial(tried, deployment, bad[kind], reason), f"{kind}: {reason}", PATIENCE_SECONDS)
        worker.stop()

        assert [] == untruths(deployment, ORDERS, shop)
        assert [] == elsewhere.received
        assert other == worker.told("endpoint.secret_unreadable")["endpoint_id"]
        assert ([], set()) == (unreadable.received, reasons(deployment, other))


def test_of_a_hundred_endpoints_of_which_ninety_nine_hang_one_hears_all_before_a_try_has_ended(
    deployment: Deployment, shop: str, vault: TokenVault
) -> None:
    with Receiver() as receiver, socket.create_server(("127.0.0.1", 0), backlog=1024) as hanging:
        healthy = Hook(receiver, "/healthy")
        add(deployment, vault, healthy)
        for _ in range(99):
            with deployment.ledger.begin() as db:
                endpoints.add(db, f"http://127.0.0.1:{hanging.getsockname()[1]}/", vault.encrypt(healthy.secret))
        worker = deployment.start_worker(WEBHOOK_CONCURRENCY="16")
        wait_for_ends(deployment, enqueue(deployment, shop))
        hears_all(deployment, healthy)
        ats = {each.id: each.at.timestamp() for each in feed(deployment)}

        assert max(each.at - ats[each.id] for each in healthy.received) < TRY_SECONDS
        worker.kill()


def test_a_receiver_whose_certificate_changed_is_told_nothing_until_it_is_trusted_again(
    deployment: Deployment, shop: str, vault: TokenVault, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    known = Tls(tmp_path)
    Tls(tmp_path / "other")
    with Receiver(tls=known.context) as receiver:
        hook = Hook(receiver, "", MONEY)
        id_ = add(deployment, vault, hook)
        deployment.start_worker(CA_BUNDLE=str(known.bundle))
        wait_for_ends(deployment, enqueue(deployment, shop))
        hears_all(deployment, hook)
        heard = len(hook.received)
        known.context.load_cert_chain(tmp_path / "other" / "server.pem")  # what is presented from now on
        deployment.trackstar.add_order(shop, "o-later")
        later = deployment.client.enqueue(shop, "o-later")
        wait_for_ends(deployment, [later])
        deployment.wait_until(lambda: "tls_failed" in reasons(deployment, id_), "a refused certificate")
        assert (heard, 1) == (len(hook.received), waiting(deployment, id_))

        known.context.load_cert_chain(tmp_path / "server.pem")
        hears_all(deployment, hook)


@pytest.mark.deployment(ledgers=("postgresql",), settings={"WEBHOOK_ALLOW_PRIVATE": "false"})
def test_a_name_that_turns_out_to_be_private_is_not_connected_to_and_its_events_wait(
    deployment: Deployment, shop: str, vault: TokenVault
) -> None:
    with RawServer(*[whole()] * 50) as server:
        with deployment.ledger.begin() as db:
            url, secret = f"https://localhost:{server.port}/", vault.encrypt(new_secret())
            id_ = endpoints.add(db, url, secret, types=MONEY)
        deployment.start_worker()
        wait_for_ends(deployment, enqueue(deployment, shop))
        deployment.wait_until(partial(tried, deployment, id_, "address_not_allowed"), "a refused address")

        assert ({"address_not_allowed"}, 0) == (reasons(deployment, id_), server.accepted)


def test_what_is_refused_for_ever_holds_up_its_own_order_alone(
    deployment: Deployment, shop: str, vault: TokenVault
) -> None:
    def answer(received: Received) -> Answer:
        return (400 if received.event["order_id"] == "o-0" else 204), {}

    with Receiver(answer) as receiver:
        hook = Hook(receiver, "/picky", [*MONEY, "cancellation.ended"])
        id_ = add(deployment, vault, hook)
        deployment.start_worker()
        wait_for_ends(deployment, enqueue(deployment, shop))

        def heard() -> set[str]:
            return {each.event["order_id"] for each in hook.received if each.event["type"] == "refund.released"}

        deployment.wait_until(lambda: heard() == set(ORDERS[1:]), "the others' refunds", PATIENCE_SECONDS)
        deployment.wait_until(lambda: waiting(deployment, id_) == 2, "nothing else to wait")
        assert {"http_400", "delivered"} == reasons(deployment, id_)
