"""A whole deployment behind Debian's PgBouncer in transaction mode: migration, producers, two workers (kind B3)."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import run
from harness.deployment import API_KEY, Deployment
from harness.parts import PgBouncer, PostgresServer, open_folder
from harness.settings import SHORT
from harness.truth import untruths, wait_for_ends

from worker.dev.embedded import embedded_redis
from worker.dev.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.vault import TokenVault

ORDERS = 40
SAFE = {"yes"}
POOLERS: list[tuple[str, ...]] = [(), ("ignore_startup_parameters = options", "default_pool_size = 3")]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with open_folder("cancel-worker-bounced-") as folder:
        made = PostgresServer.create(folder / "data")
        made.start()
        yield made
        made.stop()


@pytest.fixture(params=POOLERS, ids=["by default", "options ignored, three sessions"])
def pooler(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[PgBouncer]:
    with open_folder("cancel-worker-bouncer-") as folder, PgBouncer(folder, server.port, *request.param) as made:
        yield made


@contextmanager
def deployed(url: str, folder: Path, key: str) -> Iterator[Deployment]:
    with embedded_redis() as redis, Sandbox(API_KEY) as sandbox:
        made = Deployment(redis.url, url, sandbox.world, sandbox.url, folder, key, SHORT)
        made.redis_server = redis
        try:
            yield made
        finally:
            made.close()


def migrate_twice_at_once(deployment: Deployment) -> list[int]:
    command: list[str | Path] = [Path(sys.executable).with_name("cancel-worker"), "migrate"]
    both = [subprocess.Popen(command, env=deployment.env) for _ in range(2)]
    return [each.wait(60) for each in both]


def test_a_deployment_works_behind_a_pooler_of_transactions(
    server: PostgresServer, pooler: PgBouncer, tmp_path: Path, credential_key: str, vault: TokenVault
) -> None:
    with deployed(pooler.url(), tmp_path, credential_key) as deployment:
        assert [0, 0] == migrate_twice_at_once(deployment)
        deployment.connect(vault, ["shop-1"])
        for number in range(ORDERS):
            script: Any = {"script": ["503"]} if number % 5 == 0 else {}
            deployment.trackstar.add_order("shop-1", f"o-{number}", **script)
        workers = [deployment.start_worker() for _ in range(2)]
        ids = deployment.client.enqueue_many(
            {"connection_id": "shop-1", "order_id": f"o-{number}"} for number in range(ORDERS)
        )
        deployment.wait_until(lambda: {deployment.client.safe_to_refund(each) for each in ids} == SAFE, "every proof")
        wait_for_ends(deployment, ids)
        listed = run(deployment, "list")
        outputs = [worker.output for worker in workers]
        ended = [worker.stop() for worker in workers]

        assert [] == untruths(deployment, [f"o-{number}" for number in range(ORDERS)])
        assert [0, 0] == ended
        assert [] == [word for text in outputs for word in (".unavailable", ".crashed") if word in text], outputs
        assert 0 == listed[0], listed[1]
    assert [(0,)] == server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
