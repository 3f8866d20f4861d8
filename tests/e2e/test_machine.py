"""The machine under a worker: a log that nobody takes, too few threads and descriptors, a signal at a bad moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.deployment import CELERY, Worker
from harness.ledgers import SLOW_LEDGERS
from harness.parts import needs
from harness.settings import SHORT
from harness.truth import leftovers, record_id, untruths, wait_for_ends

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.deployment import Deployment

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT)
COMMAND = Path(sys.executable).with_name("cancel-worker")
ORDERS = [f"o-{number}" for number in range(25)]
PRLIMIT, SETPRIV, UNSHARE = (shutil.which(each) or each for each in ("prlimit", "setpriv", "unshare"))
NO_PRIVILEGE = 65_534  # a user whom limits bind


class Process(Worker):
    """A worker whose output goes where the test says."""

    def __init__(self, deployment: Deployment, folder: Path, **options: Any) -> None:
        self.log = folder / "worker.log"
        env = {**deployment.env, **options.pop("env", {})}
        command = options.pop("command", CELERY)
        with self.log.open("ab") as output:
            streams: dict[str, Any] = {"stdout": output, "stderr": output} | options
            self.process = subprocess.Popen(command, env=env, cwd=folder, **streams)
        deployment.workers.append(self)


def all_end(deployment: Deployment, shop: str) -> None:
    """Enqueue orders and see that each is cancelled."""
    for order_id in ORDERS:
        deployment.trackstar.add_order(shop, order_id)
    deployment.client.enqueue_many({"connection_id": shop, "order_id": order_id} for order_id in ORDERS)
    wait_for_ends(deployment, [record_id(each) for each in ORDERS])

    assert [] == untruths(deployment, ORDERS, shop)


# ---- a log that cannot be written


def into_a_full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def into_a_pipe_without_a_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def into_a_pipe_that_nobody_empties() -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    STALLED.append(reader)
    return writer


STALLED: list[int] = []


OUTPUTS = [into_a_full_disk, into_a_pipe_without_a_reader, into_a_pipe_that_nobody_empties]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda each: each.__name__)
def test_a_log_that_cannot_be_written_costs_lines_and_no_cancel(
    deployment: Deployment, shop: str, tmp_path: Path, output: Callable[[], int]
) -> None:
    descriptor = output()
    worker = Process(deployment, tmp_path, command=(COMMAND, "run"), stdout=descriptor, stderr=descriptor)
    os.close(descriptor)
    all_end(deployment, shop)

    assert 0 == worker.stop()


def test_a_log_whose_streams_are_closed_is_written_into_nothing_else(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    closed = ["bash", "-c", 'exec "$@" >&- 2>&- <&-', "bash", *CELERY]
    worker = Process(deployment, tmp_path, command=closed)
    all_end(deployment, shop)

    assert 0 == worker.stop()


def test_lines_that_were_lost_are_told_of_when_the_log_is_read_again(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    worker = Process(deployment, tmp_path, stderr=writer, stdout=subprocess.DEVNULL)
    for round_ in range(20):  # more than a pipe holds
        orders = [f"{round_}-{number}" for number in range(25)]
        for order_id in orders:
            deployment.trackstar.add_order(shop, order_id)
        deployment.client.enqueue_many({"connection_id": shop, "order_id": each} for each in orders)
    deployment.wait_until(lambda: len([row for row in deployment.all() if row.ended]) == 500, "every end")
    with os.fdopen(reader, "rb") as log:
        lines: list[bytes] = []
        threading.Thread(target=lambda: lines.extend(log), daemon=True).start()
        deployment.trackstar.add_order(shop, "last")
        deployment.client.enqueue(shop, "last")
        deployment.wait_until(lambda: any(b'"log.dropped"' in line for line in lines), "the number of lost lines")
        os.close(writer)
        worker.stop()


# ---- too few threads, too few descriptors


def as_nobody(deployment: Deployment, tmp_path: Path, limit: str, **env: str) -> Process:
    """Start a worker as a user whom the limits bind, with one of them lowered; it may read what root may."""
    needs(os.geteuid() == 0 and shutil.which(SETPRIV) is not None, "start a process as another user")
    user = [f"--reuid={NO_PRIVILEGE}", f"--regid={NO_PRIVILEGE}", "--clear-groups"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return Process(deployment, tmp_path, command=[SETPRIV, *user, *rights, PRLIMIT, limit, "--", *CELERY], env=env)


@pytest.mark.deployment(ledgers=["postgresql"], settings=SHORT)
def test_a_worker_that_may_have_fewer_threads_than_asked_for_goes_on_with_those(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    worker = as_nobody(deployment, tmp_path, "--nproc=40:40", CONCURRENCY="200")
    all_end(deployment, shop)
    missing = worker.told("executor.threads_missing")

    assert 200 == missing["wanted"] > missing["started"] > 0
    assert 0 == worker.stop()


@pytest.mark.deployment(ledgers=["postgresql"], settings=SHORT)
def test_a_worker_that_may_have_hardly_any_thread_says_so_and_ends(deployment: Deployment, tmp_path: Path) -> None:
    worker = as_nobody(deployment, tmp_path, "--nproc=5:5")
    code = worker.wait_until_dead()

    assert 0 != code
    assert "Let it have more threads" in worker.output


@pytest.mark.deployment(ledgers=["postgresql"], settings=SHORT)
def test_a_worker_without_descriptors_loses_nothing_and_ends_when_told(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    needs(shutil.which(PRLIMIT) is not None, "limit a running process")
    worker = Process(deployment, tmp_path)
    worker.wait_until_consuming()
    used = len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))
    subprocess.run([PRLIMIT, f"--pid={worker.process.pid}", f"--nofile={used}:4096"], check=True)
    for order_id in ORDERS:
        deployment.trackstar.add_order(shop, order_id)
    deployment.client.enqueue_many({"connection_id": shop, "order_id": order_id} for order_id in ORDERS)
    time.sleep(3)  # nothing can be awaited: it is what does not happen
    subprocess.run([PRLIMIT, f"--pid={worker.process.pid}", "--nofile=1024:4096"], check=True)
    wait_for_ends(deployment, [record_id(each) for each in ORDERS])

    assert [] == untruths(deployment, ORDERS, shop)
    assert 0 == worker.stop()
    assert [] == leftovers(deployment)


# ---- a signal at a bad moment


def may_make_process_1() -> bool:
    if not shutil.which(UNSHARE):
        return False
    return 0 == subprocess.run(as_process_1("true"), check=False, capture_output=True).returncode


def as_process_1(*words: str | Path) -> list[str | Path]:
    return [UNSHARE, "--pid", "--fork", "--kill-child", *words]


@pytest.mark.parametrize("words", [("run",), ("migrate",), ("doctor",), ("list",)], ids=" ".join)
@pytest.mark.deployment(ledgers=["postgresql"])
def test_sigterm_ends_any_command_that_is_process_1_and_waits(
    deployment: Deployment, tmp_path: Path, words: tuple[str, ...]
) -> None:
    needs(may_make_process_1(), "make a process 1")
    silent = Silence()
    env = deployment.env | {"DATABASE_URL": f"postgresql://postgres@127.0.0.1:{silent.port}/postgres"}
    process = subprocess.Popen(as_process_1(COMMAND, *words), env=env, cwd=tmp_path, stderr=subprocess.PIPE)
    silent.wait_for_a_client()
    (child,) = children(process.pid)
    os.kill(child, signal.SIGTERM)

    assert process.wait(15) is not None
    process.stderr.close() if process.stderr else None
    silent.close()


class Silence:
    """A server that takes connections and says nothing."""

    def __init__(self) -> None:
        import socket  # noqa: PLC0415

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def wait_for_a_client(self) -> None:
        self._socket.settimeout(30)
        self._client, _ = self._socket.accept()

    def close(self) -> None:
        self._client.close()
        self._socket.close()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
