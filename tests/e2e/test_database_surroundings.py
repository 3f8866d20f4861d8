"""A whole worker whose database comes late, turns read-only, changes under its plans, or gives it few rights.

Kinds B1, B2, B18 and B20, and a role with SELECT, INSERT and UPDATE only.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from harness.deployment import API_KEY, Deployment, Worker
from harness.parts import PostgresServer, lasting_port, open_folder
from harness.settings import SHORT
from harness.truth import wait_for_ends

from worker.dev.embedded import embedded_redis
from worker.dev.sandbox import Sandbox
from worker.ledger import migrations
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.vault import TokenVault

RUN = (str(Path(sys.executable).with_name("cancel-worker")), "run")


def migrate(url: str) -> None:
    engine = open_ledger(url)
    migrations.migrate(engine)
    engine.dispose()


class Scene:
    """A deployment on a server of its own, with one connection."""

    def __init__(self, server: PostgresServer, deployment: Deployment) -> None:
        self.server = server
        self.deployment = deployment
        self._orders = 0

    def send(self, count: int = 1) -> list[str]:
        """Enqueue so many new orders, each a job by itself."""
        names = [f"o-{self._orders + number}" for number in range(count)]
        self._orders += count
        for name in names:
            self.deployment.trackstar.add_order("shop-1", name)
        return [self.deployment.client.enqueue("shop-1", name) for name in names]

    def send_and_wait(self, count: int = 1) -> None:
        for each in self.send(count):
            wait_for_ends(self.deployment, [each])

    def end_sessions(self) -> None:
        self.server.end_clients()
        self.deployment.ledger.dispose()  # the test's own

    def failures(self, worker: Worker) -> int:
        return worker.output.count(".unavailable") + worker.output.count(".crashed")


@pytest.fixture
def scene(tmp_path: Path, credential_key: str, vault: TokenVault) -> Iterator[Scene]:
    with open_folder("cancel-worker-scene-") as folder, embedded_redis() as redis, Sandbox(API_KEY) as sandbox:
        server = PostgresServer.create(folder / "data")
        server.start()
        migrate(server.url)
        deployment = Deployment(redis.url, server.url, sandbox.world, sandbox.url, tmp_path, credential_key, SHORT)
        deployment.connect(vault, ["shop-1"])
        yield Scene(server, deployment)
        deployment.close()
        server.stop()


@contextmanager
def answering(port: str, path: str) -> Iterator[requests.Response]:
    with requests.get(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        yield answer


def test_a_worker_that_starts_before_its_database_waits_for_it(scene: Scene) -> None:
    scene.server.stop()
    port = str(lasting_port())
    worker = scene.deployment.start_worker(command=RUN, HEALTH_PORT=port)
    worker.wait_for_line("waits for it")
    worker.wait_for_line("housekeeper.unavailable")
    with answering(port, "/livez") as alive:
        assert 200 == alive.status_code
    scene.deployment.ledger.dispose()
    ids = scene.send(2)
    scene.server.start()

    wait_for_ends(scene.deployment, ids)
    assert 0 == worker.stop()


def test_a_worker_whose_late_database_is_empty_waits_for_the_migration(scene: Scene, vault: TokenVault) -> None:
    migrations.roll_back(scene.deployment.ledger)
    scene.deployment.ledger.dispose()
    scene.server.stop()
    worker = scene.deployment.start_worker(command=RUN)
    worker.wait_for_line("waits for it")
    worker.wait_until_ready()
    scene.server.start()
    worker.wait_for_line("ledger.schema_unfit")
    migrate(scene.server.url)
    scene.deployment.connect(vault, ["shop-1"])

    scene.send_and_wait()


def test_a_worker_that_waits_for_its_database_ends_when_it_is_told_to(scene: Scene) -> None:
    scene.server.stop()
    worker = scene.deployment.start_worker(command=RUN)
    worker.wait_until_ready()

    assert 0 == worker.stop()


def test_a_worker_goes_on_by_itself_after_a_database_was_read_only(scene: Scene) -> None:
    worker = scene.deployment.start_worker()
    scene.send_and_wait()
    scene.server.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    scene.end_sessions()
    ids = scene.send(3)
    worker.wait_for_line("intake.unavailable")
    scene.server.execute("BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT")

    wait_for_ends(scene.deployment, ids)
    scene.send_and_wait()


def test_a_worker_goes_on_after_a_column_has_another_type(scene: Scene) -> None:
    worker = scene.deployment.start_worker()
    scene.send_and_wait(12)
    scene.server.execute("ALTER TABLE cancellations ALTER COLUMN order_id TYPE text")
    scene.send_and_wait(6)

    # At most one statement of each of its sessions has failed.
    assert 6 >= scene.failures(worker)


def test_a_role_that_may_only_select_insert_and_update_runs_a_worker(scene: Scene) -> None:
    server = scene.server
    server.execute("CREATE ROLE few LOGIN")
    server.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    server.execute("GRANT USAGE ON SCHEMA public TO few")
    server.execute("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO few")
    server.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO few")
    url = server.url.replace("postgres@", "few@")
    worker = scene.deployment.start_worker(command=RUN, DATABASE_URL=url)
    scene.send_and_wait(3)

    assert 0 == scene.failures(worker), worker.output
    assert 0 == worker.stop()


def test_a_worker_takes_a_changed_password_from_its_file(scene: Scene, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    scene.server.execute("CREATE ROLE first LOGIN SUPERUSER")
    secret.write_text(scene.server.url.replace("postgres@", "first@"))
    settings = {"DATABASE_URL": "", "DATABASE_URL_FILE": str(secret)}
    worker = scene.deployment.start_worker(command=RUN, **settings)
    scene.send_and_wait()
    scene.server.execute("CREATE ROLE second LOGIN SUPERUSER")
    scene.server.execute("ALTER ROLE first NOLOGIN")
    scene.end_sessions()
    ids = scene.send(2)
    worker.wait_for_line("intake.unavailable")
    secret.write_text(scene.server.url.replace("postgres@", "second@"))

    wait_for_ends(scene.deployment, ids)
