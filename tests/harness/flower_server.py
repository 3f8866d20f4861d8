"""Real Flowers, and Debian's nginx before one. Knows how each is started; nothing of what a page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from harness.parts import START_SECONDS, STOP_SECONDS, lasting_port, part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.deployment import Deployment

PROGRAM = Path(sys.executable).with_name("celery")
AUTH = ("ann", "of-flower-0815")


class Flower:
    """One Flower and what it says."""

    def __init__(
        self, deployment: Deployment, folder: Path, words: Sequence[str], environment: dict[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{lasting_port()}"
        self._log = folder / "flower.log"
        named = [f"--port={self.url.rpartition(':')[2]}", "--address=127.0.0.1"]
        secrets = {name: value for name, value in deployment.env.items() if not name.startswith("TRACKSTAR_")}
        self._command = [str(PROGRAM), "-A", "worker", "flower", *named, *words]
        self._environment, self._folder = {**secrets, **environment}, folder
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._command, env=self._environment, cwd=self._folder, stdout=output, stderr=output
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def listens(self) -> bool:
        assert self.process.poll() is None, self.output
        prefix = self._environment.get("FLOWER_URL_PREFIX", "")
        try:
            return requests.get(f"{self.url}{prefix}/healthcheck", timeout=5).ok
        except requests.ConnectionError:
            return False

    def status(self, path: str = "/workers", auth: tuple[str, str] | None = None) -> int:
        return requests.get(self.url + path, auth=auth, timeout=10, allow_redirects=False).status_code

    def hears(self, worker: str, auth: tuple[str, str] = AUTH) -> bool:
        """Whether its list has this worker, whose events it follows from then on."""
        return worker in requests.get(f"{self.url}/workers", auth=auth, timeout=10).text

    def stop(self) -> int:
        """Ask it to end as an orchestrator does; return its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def restart(self) -> None:
        self.stop()
        self.process = self._started()


@contextmanager
def flower(deployment: Deployment, folder: Path, *words: str, **environment: str) -> Iterator[Flower]:
    """Start one; it may refuse to run."""
    started = Flower(deployment, folder, words, environment)
    try:
        yield started
    finally:
        try:
            started.stop()
        finally:
            started.process.kill()


@contextmanager
def open_flower(deployment: Deployment, folder: Path, **environment: str) -> Iterator[Flower]:
    """Start one that people log in to as AUTH, and wait until it answers."""
    with flower(deployment, folder, **{"FLOWER_BASIC_AUTH": ":".join(AUTH), **environment}) as started:
        deployment.wait_until(started.listens, "Flower", START_SECONDS)
        yield started


NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {location}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, location: str) -> Iterator[str]:
    """Run Debian's nginx with this location; return its address."""
    port = lasting_port()
    config, log = folder / "nginx.conf", folder / "nginx.log"
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers may not enter a test's folder
    config.write_text(NGINX.format(user=user, folder=folder, port=port, location=location))
    with log.open("ab") as output:
        command = [part("nginx"), "-e", str(log), "-c", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
