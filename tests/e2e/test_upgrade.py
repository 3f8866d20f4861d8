"""A release of before and this one on one ledger, migrated under load, and the way back (docs/upgrade.md)."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from contextlib import closing, contextmanager
from itertools import count, islice
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from harness.commands import run
from harness.deployment import API_KEY, CELERY, Deployment, Worker, token_of
from harness.parts import needs
from harness.receiver import Receiver
from harness.truth import leftovers, record_id, untruths, wait_for_ends
from sqlalchemy import make_url, text

from worker.dev.embedded import embedded_redis
from worker.dev.sandbox import Sandbox
from worker.ledger import endpoints
from worker.ledger.database import read_only
from worker.ledger.vault import TokenVault
from worker.streams import INBOX
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "upgrade.md").read_text()
PREVIOUS = re.findall(r"previous release: commit ([0-9a-f]{40}), revision (\w+)$", PAGE, re.MULTILINE)
assert PREVIOUS, "docs/upgrade.md names no commit."
ROLE = "cancel_worker"  # the page's name of it
SHOP = "shop-1"
SETTINGS = {"FORCE_SYNC": "false", "WEBHOOK_ALLOW_PRIVATE": "true"}
TOLD = "cancellation.ended"
BACKLOG = 150  # orders
LONG = 240.0  # a busy machine; or a lease, where a worker ended with a row in hand
# Celery, after the process has said which code it runs.
SAYING = (
    "import runpy, sys, worker; print('The code is', worker.__file__, flush=True);"
    " sys.argv = ['celery', *sys.argv[1:]]; runpy.run_module('celery', run_name='__main__')"
)
ENDED = "SELECT count(*) FROM cancellations WHERE ended_at IS NOT NULL"
ORDERS_ENDED = "SELECT order_id FROM cancellations WHERE ended_at IS NOT NULL"
FAULTS = ("Traceback", '"level":"error"', '"level":"critical"', ".unavailable", ".crashed")


def git(*words: str) -> bytes:
    return subprocess.run([shutil.which("git") or "git", "-C", ROOT, *words], capture_output=True, check=True).stdout


def is_in_history(commit: str) -> bool:
    try:
        git("cat-file", "-e", commit)
    except (subprocess.CalledProcessError, OSError):
        return False
    return True


class Release:
    """The code of another commit, run by this environment's Python."""

    def __init__(self, folder: Path, commit: str, revision: str) -> None:
        needs(is_in_history(commit), "read the commit of the previous release, as in a whole clone")
        self.revision = revision
        archive = git("archive", commit, "worker", "migrations")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
            tree.extractall(folder, filter="data")
        self.code = folder / "worker" / "__init__.py"
        # Without what would measure how much of `worker/` is tested.
        self._through = ("env", "-u", "COVERAGE_PROCESS_CONFIG", f"PYTHONPATH={folder}", sys.executable)

    def run(self, deployment: Deployment, *words: str, typed: str = "") -> tuple[int, str]:
        """Run its command line, in its own folder, where Python looks first."""
        command = [*self._through, "-c", "from worker.cli import main; main()", *words]
        done = subprocess.run(
            command,
            cwd=self.code.parents[1],
            env=deployment.env,
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def start(self, deployment: Deployment) -> Worker:
        started = deployment.start_worker(command=(*self._through, "-c", SAYING, *CELERY[1:]))
        started.wait_for_line(f"The code is {self.code}")
        started.wait_until_ready()
        return started


@pytest.fixture(params=PREVIOUS, ids=[commit[:7] for commit, _ in PREVIOUS])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    (folder := tmp_path / "previous").mkdir()
    return Release(folder, *request.param)


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path, credential_key: str) -> Iterator[Deployment]:
    """A deployment whose ledger has no tables yet, of the kind that is asked for."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/ledger.sqlite3" if sqlite else request.getfixturevalue("postgres").empty()
    with embedded_redis() as redis, Sandbox(API_KEY, sync_schedules=False) as sandbox:
        made = Deployment(redis.url, url, sandbox.world, sandbox.url, tmp_path, credential_key, SETTINGS)
        with closing(made):
            yield made


class Load:
    """Orders of one connection, and what has become of them."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.orders: list[str] = []
        self._numbers = count()

    def add(self, many: int, **fields: str) -> None:
        """Enqueue as many more, in the form that each release reads."""
        for number in islice(self._numbers, many):
            order_id = f"o-{number}"
            self.deployment.trackstar.add_order(SHOP, order_id, script=["503"] if number % 10 == 0 else [])
            self.deployment.redis.xadd(
                INBOX, {"job": json.dumps({"connection_id": SHOP, "order_id": order_id, **fields})}
            )
            self.orders.append(order_id)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Let three orders come every tenth of a second, unless too many wait on a busy machine."""
        stopped = Event()

        def flow() -> None:
            while not stopped.wait(0.1):
                if len(self.orders) - self.ended < BACKLOG:
                    self.add(3)

        thread = Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    @property
    def ended(self) -> int:
        return self.count(ENDED)

    def count(self, query: str) -> int:
        """Ask in words that both schemas know."""
        with read_only(self.deployment.ledger) as db:
            return int(db.execute(text(query)).scalar_one())

    def orders_ended(self) -> set[str]:
        with read_only(self.deployment.ledger) as db:
            return set(db.execute(text(ORDERS_ENDED)).scalars())

    def in_the_feed(self) -> set[str]:
        """Return the orders of whose end the feed tells."""
        found = self.deployment.client.events(types=[TOLD], timeout=0.0)
        return {str(getattr(each.event, "order_id", None)) for each in found}

    def wait_for(self, more: int) -> None:
        """Wait until so many more have ended."""
        wanted = self.ended + more
        self.deployment.wait_until(lambda: self.ended >= wanted, f"{more} more ends", LONG)

    def wait_for_all(self) -> None:
        self.deployment.wait_until(lambda: self.ended == len(self.orders), "every end", LONG)

    def lost_or_wrong(self) -> list[str]:
        """Return what is wrong with any of them, its document included."""
        made = self.deployment
        wait_for_ends(made, map(record_id, self.orders))
        # What the release before ended has no event about its money, as the page of what changed says.
        wrong = [each for each in untruths(made, self.orders) if "told otherwise than proven: []" not in each]
        for order_id in self.orders:
            cancels = made.trackstar.order(SHOP, order_id).truth.effective_cancels
            found = made.client.get(record_id(order_id), snapshot=True)
            document = found and found.order_snapshot
            if cancels != 1 or not document or order_id not in document:
                wrong.append(f"{order_id}: {cancels} cancels, the document {document}")
        return wrong


def grants() -> list[str]:
    block = re.search(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    assert block
    return [line.strip() for line in block[1].splitlines() if line.strip()]


@contextmanager
def role_of_the_workers(deployment: Deployment, name: str) -> Iterator[None]:
    """Let processes work as a role that owns nothing and has rights on what is there now; on PostgreSQL only."""
    owner = make_url(deployment.database_url)
    if owner.get_backend_name() == "sqlite":
        yield
        return
    with deployment.ledger.begin() as db:
        db.exec_driver_sql(f"CREATE ROLE {name}")
        db.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}")
        db.exec_driver_sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
    as_role = owner.update_query_dict({"options": f"-crole={name}"})
    deployment.env["DATABASE_URL"] = as_role.render_as_string(hide_password=False)
    try:
        yield
    finally:
        for worker in deployment.workers:
            worker.close()
        with deployment.ledger.begin() as db:
            db.exec_driver_sql(f"DROP OWNED BY {name}")
            db.exec_driver_sql(f"DROP ROLE {name}")


def migrate(deployment: Deployment, role: str) -> tuple[int, str]:
    """Do steps 3 and 4 of the page, as the tables' owner."""
    workers, deployment.env["DATABASE_URL"] = deployment.env["DATABASE_URL"], deployment.database_url
    done = run(deployment, "migrate")
    deployment.env["DATABASE_URL"] = workers
    if deployment.ledger.dialect.name != "sqlite":
        with deployment.ledger.begin() as db:
            for statement in grants():
                db.exec_driver_sql(statement.replace(f"TO {ROLE};", f"TO {role}"))
    return done


def faults(worker: Worker) -> list[str]:
    return [line for line in worker.output.splitlines() if any(word in line.replace(": ", ":") for word in FAULTS)]


def start_todays(deployment: Deployment) -> Worker:
    started = deployment.start_worker(command=(sys.executable, "-c", SAYING, *CELERY[1:]))
    started.wait_for_line(f"The code is {ROOT / 'worker' / '__init__.py'}")
    started.wait_until_ready()
    return started


def left_by_others(deployment: Deployment, *old: Worker) -> list[str]:
    """Return what is left in Redis, but for the list of its own that an old worker may leave as it ends."""
    owners = {owner for each in old for owner in re.findall(r'"owner": ?"([^"]+)"', each.output)}
    return [each for each in leftovers(deployment) if not any(owner in each for owner in owners)]


def letters(load: Load) -> int:
    return load.count("SELECT count(*) FROM dead_letters WHERE requeued_at IS NULL")


class Endpoint:
    """A receiver of webhooks that is added while both releases work, and of which orders it must hear."""

    def __init__(self, load: Load, receiver: Receiver, key: str) -> None:
        self._load, self._receiver = load, receiver
        with load.deployment.ledger.begin() as db:
            secret = TokenVault([key]).encrypt(new_secret())
            endpoints.add(db, receiver.url, secret, types=[TOLD], connections=[SHOP])
        self._not_for_it = load.orders_ended()  # perhaps before it was there

    def wait_for_all(self) -> None:
        def missing() -> set[str]:
            heard = {each.event["order_id"] for each in list(self._receiver.received)}
            return set(self._load.orders) - self._not_for_it - heard

        self._load.deployment.wait_until(lambda: not missing(), "every webhook", LONG)


@pytest.mark.timeout(1200)  # nine processes start one after the other
def test_two_releases_work_on_one_ledger_that_is_migrated_under_load_and_back(
    deployment: Deployment, release: Release, credential_key: str
) -> None:
    load = Load(deployment)
    assert (0, f"The ledger is at revision {release.revision}.\n") == release.run(deployment, "migrate")
    deployment.trackstar.connect(SHOP, token_of(SHOP))
    assert 0 == release.run(deployment, "connections", "add", SHOP, typed=token_of(SHOP))[0]
    role = f"role_of_{make_url(deployment.database_url).database}"
    with role_of_the_workers(deployment, role), Receiver() as receiver:
        old, new, endpoint = _there(deployment, release, load, role, lambda: Endpoint(load, receiver, credential_key))
        back = _back(deployment, release, load, old, new)
        again = start_todays(deployment)
        endpoint.wait_for_all()
        assert set(load.orders) == load.in_the_feed()
        assert 0 == again.stop()
        assert [] == [line for worker in (old, new, back, again) for line in faults(worker)]


def _there(
    deployment: Deployment, release: Release, load: Load, role: str, add_endpoint: Callable[[], Endpoint]
) -> tuple[Worker, Worker, Endpoint]:
    old = release.start(deployment)
    with load.flowing():
        load.wait_for(30)
        before = load.ended
        assert 0 == migrate(deployment, role)[0]
        assert load.ended > before  # it worked meanwhile
        load.wait_for(30)
        load.add(1, batch="of tomorrow")  # which the old release cannot read
        deployment.wait_until(lambda: letters(load) == 1, "the dead letter")
        new = start_todays(deployment)
        endpoint = add_endpoint()
        load.wait_for(90)
        assert 0 == old.stop()
        assert 0 == run(deployment, "dead-letters", "requeue", "1")[0]
    load.wait_for_all()
    assert [] == load.lost_or_wrong()
    deployment.wait_until(
        lambda: not left_by_others(deployment, old), "empty lists"
    )  # reads go on after all have ended
    assert load.count("SELECT count(*) FROM documents")
    endpoint.wait_for_all()
    return old, new, endpoint


def _back(deployment: Deployment, release: Release, load: Load, old: Worker, new: Worker) -> Worker:
    with load.flowing():
        load.wait_for(10)
        assert 0 == new.stop()
        back = release.start(deployment)
        load.wait_for(30)
    load.wait_for_all()
    assert load.count("SELECT count(*) FROM cancellations WHERE order_snapshot IS NOT NULL")
    assert [] == load.lost_or_wrong()
    deployment.wait_until(lambda: not left_by_others(deployment, old, back), "empty lists")
    refused, said = release.run(deployment, "run")
    assert (2, True) == (refused, "schema is" in said)  # as the page says
    assert 0 == back.stop()
    return back
