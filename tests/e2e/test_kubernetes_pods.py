"""Whole processes as their pods start them: any user, nothing to write to, secrets as files; healthy until SIGTERM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from harness.kubernetes import Manifests
from harness.parts import START_SECONDS, STOP_SECONDS, lasting_port, needs, open_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = Path(sys.executable).parent
MANIFESTS = Manifests()
NOWHERE = "127.0.0.1:1"  # the stores are away, which must keep nobody from being alive
VALUES = {
    "DATABASE_URL": f"postgresql://cancel_worker:word@{NOWHERE}/cancel_worker",
    "REDIS_URL": f"redis://worker:word@{NOWHERE}/0",
    "TRACKSTAR_API_KEY": "key",
    "CREDENTIAL_KEYS": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "FLOWER_BASIC_AUTH": "user:word",
}
APART = ("unshare", "--mount")
# All that is mounted below / becomes read-only for this process alone; then it becomes the user.
READ_ONLY = """
set -e
mount --make-rprivate / && mount --bind / /
for place in $(cut -d ' ' -f 2 /proc/mounts); do mount -o remount,bind,ro "$place" 2>/dev/null || true; done
! touch /tmp/written 2>/dev/null
exec "$@"
"""


def command_of(pod: str, user: int) -> list[str]:
    (container,) = MANIFESTS.pods[pod]["spec"]["containers"]
    stated: list[str] = [*container.get("command", ["cancel-worker"]), *container.get("args", [])]
    # To read is not what is tried here: the interpreter may lie in the home of root.
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--no-new-privs")
    become = ("setpriv", f"--reuid={user}", "--regid=0", "--clear-groups", *reads)
    return [*APART, "sh", "-c", READ_ONLY, "sh", *become, str(PROGRAMS / stated[0]), *stated[1:]]


def environment_of(pod: str, folder: Path, **more: str) -> Mapping[str, str]:
    """The environment of the pod, with its secrets in a folder of this test."""
    found = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **MANIFESTS.environment(pod), **more}
    for name in [name for name in found if name.endswith("_FILE")]:
        file = folder / name.removesuffix("_FILE")
        file.write_text(VALUES[file.name])
        found[name] = str(file)
    return found


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 2 * START_SECONDS
    while True:
        with suppress(requests.ConnectionError):
            if requests.get(url, timeout=5).ok:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(("pod", "port"), [("cancel-worker", "HEALTH_PORT"), ("cancel-worker-flower", "FLOWER_PORT")])
@pytest.mark.parametrize("user", [10_001, 12_345])
def test_a_pod_lives_as_any_user_without_a_file_system_to_write_to(pod: str, port: str, user: int) -> None:
    may = os.geteuid() == 0 and all(map(shutil.which, (*APART[:1], "setpriv")))
    needs(may and subprocess.run([*APART, "true"], check=False).returncode == 0, "mount file systems anew")
    path = MANIFESTS.pods[pod]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"]
    with open_folder("cancel-worker-pod-") as folder:
        number, log = lasting_port(), folder / "log"
        env = environment_of(pod, folder, **{port: str(number)})
        with log.open("wb") as output:
            process = subprocess.Popen(command_of(pod, user), env=env, cwd="/", stdout=output, stderr=output)
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{number}{path}", log)
            process.terminate()

            assert 0 == process.wait(STOP_SECONDS), log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
