"""A Redis that speaks TLS only and asks for certificates: each part verifies it, and it verifies each part."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.certificates import Authority
from harness.commands import run
from harness.flower_server import AUTH, flower
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
def start(tmp_path: Path, authority: Authority) -> Iterator[Callable[[str], RedisWithTls]]:
    started: list[RedisWithTls] = []

    def make(address: str) -> RedisWithTls:
        folder = tmp_path / f"redis-{len(started)}"
        folder.mkdir()
        made = RedisWithTls(folder, authority, address)
        made.start()
        started.append(made)
        return made

    yield make
    for each in started:
        each.stop()


@pytest.fixture
def guarded(
    make_deployment: MakeDeployment, start: Callable[[str], RedisWithTls], vault: TokenVault
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


def test_who_has_no_certificate_is_refused_by_the_server(start: Callable[[str], RedisWithTls]) -> None:
    url = start("127.0.0.1").url_of("producer", anonymous=True)
    with closing(CancelClient(url)) as client, pytest.raises(InboxUnavailableError, match="could not be reached"):
        client.enqueue(SHOP, "o-1")


def test_a_server_of_another_authority_or_of_another_name_is_sent_nothing(
    start: Callable[[str], RedisWithTls], tmp_path: Path, deployment: Deployment
) -> None:
    true, elsewhere = start("127.0.0.1"), start("127.0.0.9")
    for url in (true.url_of("producer", Authority(tmp_path, "other")), elsewhere.url_of("producer")):
        with closing(CancelClient(url)) as client, pytest.raises(InboxUnavailableError, match="could not be reached"):
            client.enqueue(SHOP, "o-1")
        deployment.env["REDIS_URL"] = url.replace("producer", "worker")
        code, said = run(deployment, "doctor")
        assert 1 == code
        assert "REDIS_URL" in said
    for server in (true, elsewhere):
        with server._connect() as admin:
            assert 0 == admin.exists("cancellations:inbox")
