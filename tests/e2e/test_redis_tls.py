"""A Redis that speaks TLS only and asks for certificates: each part verifies it, and it verifies each part."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.certificates import Authority
from harness.commands import run
from harness.flower_server import AUTH, flower
from harness.parts import START_SECONDS, lasting_port
from harness.redis_users import RedisWithTls, refusals
from harness.truth import record_id, untruths, wait_for_ends

from worker.client import CancelClient
from worker.errors import InboxUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.deployment import Deployment, MakeDeployment

    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
pytestmark = pytest.mark.deployment(ledgers=("sqlite",))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def start(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., RedisWithTls]]:
    started: list[RedisWithTls] = []

    def make(address: str, *options: str) -> RedisWithTls:
        folder = tmp_path / f"redis-{len(started)}"
        folder.mkdir()
        made = RedisWithTls(folder, authority, address, options)
        made.start()
        started.append(made)
        return made

    yield make
    for each in started:
        each.stop()


@pytest.fixture
def guarded(
    make_deployment: MakeDeployment, start: Callable[..., RedisWithTls], vault: TokenVault
) -> Iterator[tuple[Deployment, RedisWithTls]]:
    server = start("127.0.0.1")
    with make_deployment("sqlite") as made:
        made.redis = server.as_user("admin")
        made.env["REDIS_URL"] = server.url_of("worker")
        made.client.close()
        made.client = CancelClient(server.url_of("producer"), made.database_url)
        made.connect(vault, [SHOP])
        yield made, server


def test_a_job_comes_to_its_end_over_tls_and_every_part_sees_it(
    guarded: tuple[Deployment, RedisWithTls], tmp_path: Path
) -> None:
    deployment, server = guarded
    deployment.trackstar.add_order(SHOP, "o-1")
    worker = deployment.start_worker()
    worker.wait_until_consuming()
    with flower(deployment, tmp_path, REDIS_URL=server.url_of("flower"), FLOWER_BASIC_AUTH=":".join(AUTH)) as page:
        deployment.wait_until(lambda: page.listens() and page.hears("celery@"), "Flower to hear the worker")
        deployment.client.enqueue(SHOP, "o-1")
        wait_for_ends(deployment, [record_id("o-1")])
        deployment.wait_until(lambda: page.status(f"/task/{record_id('o-1')}", AUTH) == 200, "Flower's page of it")
        _, said = run(deployment, "doctor", "--json")

    assert "rights complete" in said
    assert [] == untruths(deployment, ["o-1"], SHOP)
    assert [] == refusals(deployment.redis)
    assert 0 == worker.stop()


def test_who_has_no_certificate_is_refused_by_the_server(
    start: Callable[..., RedisWithTls], deployment: Deployment
) -> None:
    # Until TLS 1.2 a server says so; since then it may only end the connection.
    older = ("--tls-protocols", "TLSv1.2")
    for options, said_of_it in (((), "could not be reached|refuses our"), (older, "refuses our")):
        server = start("127.0.0.1", *options)
        with (
            closing(CancelClient(server.url_of("producer", anonymous=True))) as client,
            pytest.raises(InboxUnavailableError, match=said_of_it),
        ):
            client.enqueue(SHOP, "o-1")
        deployment.env["REDIS_URL"] = server.url_of("worker", anonymous=True)
        code, said = run(deployment, "doctor", "--json")
        assert (1, True) == (code, "ssl_certfile and ssl_keyfile in REDIS_URL name" in said)


UNTRUSTED = "The certificate of this Redis is not trusted"
OTHER_NAME = "The certificate of this Redis does not name the host"


def test_a_server_of_another_authority_or_of_another_name_is_sent_nothing(
    start: Callable[..., RedisWithTls], tmp_path: Path, deployment: Deployment
) -> None:
    true, elsewhere = start("127.0.0.1"), start("127.0.0.9")
    other = Authority(tmp_path, "other")
    for server, authority, sentence in ((true, other, UNTRUSTED), (elsewhere, None, OTHER_NAME)):
        url = server.url_of("producer", authority)
        with closing(CancelClient(url)) as client, pytest.raises(InboxUnavailableError, match=sentence):
            client.enqueue(SHOP, "o-1")
        deployment.env["REDIS_URL"] = url
        code, said = run(deployment, "enqueue", "o-1", "--connection", SHOP)
        assert (3, True) == (code, sentence in said)
        deployment.env["REDIS_URL"] = server.url_of("worker", authority)
        code, said = run(deployment, "doctor", "--json")
        assert (1, True) == (code, sentence in said)
    for server in (true, elsewhere):
        with server._connect() as admin:
            assert [] == admin.keys()


def test_a_worker_says_of_which_server_it_trusts_none_and_ends_in_order(
    start: Callable[..., RedisWithTls], tmp_path: Path, deployment: Deployment
) -> None:
    server = start("127.0.0.1")
    port = str(lasting_port())
    worker = deployment.start_worker(REDIS_URL=server.url_of("worker", Authority(tmp_path, "other")), HEALTH_PORT=port)
    for event in ("redis.refuses", "worker.unready"):
        worker.wait_for_line(event)
    refused = worker.told("redis.refuses")
    deployment.env["HEALTH_PORT"] = port
    code, said = run(deployment, "health", "--ready")

    assert ("TLS_UNTRUSTED", True) == (refused["error"], refused["remedy"].startswith(UNTRUSTED))
    assert (1, True) == (code, UNTRUSTED in said)
    assert 0 == worker.stop()
    with server._connect() as admin:
        assert [] == admin.keys()


def test_flower_says_of_a_server_that_it_trusts_none_and_ends_in_order(
    start: Callable[..., RedisWithTls], tmp_path: Path, deployment: Deployment
) -> None:
    server = start("127.0.0.1")
    address = server.url_of("flower", Authority(tmp_path, "other"))
    with flower(deployment, tmp_path, REDIS_URL=address, FLOWER_BASIC_AUTH=":".join(AUTH)) as page:
        deployment.wait_until(lambda: "certificate verify failed" in page.output, "Flower to say it", START_SECONDS)

        assert "password-of" not in page.output
        assert 0 == page.stop()
    with server._connect() as admin:
        assert [] == admin.keys()
        assert 0 == admin.pubsub_numpat()
