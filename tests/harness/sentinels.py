"""Redis with replicas and three sentinels, all real: what a test kills, stops and watches fail over.

Knows Debian's `redis-sentinel`, which is also a server by the name it is started with; does not know who uses it.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis import Redis, RedisError

from harness.parts import LOOK_SECONDS, START_SECONDS, STOP_SECONDS, lasting_port, part

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SERVICE = "mymaster"
DOWN_MS = 1_000  # a primary that is silent for so long is replaced
FAILOVER_SECONDS = 60.0


class RedisProcess:
    """A Redis 7 or a sentinel at a port of its own, with a configuration file that it may rewrite."""

    def __init__(self, folder: Path, name: str, lines: Mapping[str, object] | str = {}) -> None:
        self.port = lasting_port()
        self.name = name
        self._folder = folder / f"{name}-{self.port}"
        self._folder.mkdir()
        self._config = self._folder / "redis.conf"
        usual: dict[str, object] = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": '""'}
        text = lines if isinstance(lines, str) else "".join(f"{word} {value}\n" for word, value in lines.items())
        self._config.write_text("".join(f"{word} {value}\n" for word, value in usual.items()) + text)
        self.process: subprocess.Popen[bytes] | None = None
        self.admin: Any = Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        # The one binary of Debian's package decides by its name what it is.
        with (self._folder / "log").open("ab") as output:
            self.process = subprocess.Popen(
                [self.name, str(self._config)], executable=part("redis-sentinel"), stdout=output, stderr=output
            )
        wait_until(self._answers, f"{self.name} at {self.port}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._folder / "log").read_text()[-2000:]
        return bool(self.admin.ping())

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def close(self) -> None:
        self.admin.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None


class Sentinels:
    """A primary, a replica or two, and three sentinels that watch them."""

    def __init__(self, folder: Path, replicas: int, settings: Mapping[str, object]) -> None:
        usual: dict[str, object] = {"appendonly": "yes", "repl-diskless-sync-delay": 0, **settings}
        self.servers = [RedisProcess(folder, "redis-server", usual) for _ in range(1 + replicas)]
        first = self.servers[0].port
        watch = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        self.sentinels = [RedisProcess(folder, "redis-sentinel", watch) for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"sentinel://{hosts}/{SERVICE}/0"

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for replica in self.servers[1:]:
            replica.admin.replicaof("127.0.0.1", self.servers[0].port)
        wait_until(lambda: self._online(self.servers[0]) == len(self.servers) - 1, "every replica")
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(self._know_all, "sentinels that know each other and every replica")

    def _know_all(self) -> bool:
        about = [sentinel.admin.sentinel_master(SERVICE) for sentinel in self.sentinels]
        return all((2, len(self.servers) - 1) == (each["num-other-sentinels"], each["num-slaves"]) for each in about)

    def _online(self, server: RedisProcess) -> int:
        return len(server.admin.role()[2])

    def primary(self) -> RedisProcess:
        """Return the server of which most sentinels say that it is the primary."""
        ports = [int(each.admin.sentinel_get_master_addr_by_name(SERVICE)[1]) for each in self.sentinels]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)

    def wait_for_another_than(self, old: RedisProcess) -> RedisProcess:
        """Wait until another server is the primary and says so itself; return it."""
        wait_until(lambda: self.primary() is not old, "a failover", FAILOVER_SECONDS)
        new = self.primary()
        wait_until(lambda: b"master" == new.admin.role()[0], "a new primary", FAILOVER_SECONDS)
        return new

    def wait_until_replica(self, server: RedisProcess) -> None:
        wait_until(lambda: b"slave" == server.admin.role()[0], "the old primary as a replica", FAILOVER_SECONDS)


@contextmanager
def running_sentinels(folder: Path, replicas: int = 1, **settings: object) -> Iterator[Sentinels]:
    """Run all of them for as long as the `with` block lasts."""
    part("redis-sentinel")
    with ExitStack() as stack:
        made = Sentinels(folder, replicas, {name.replace("_", "-"): value for name, value in settings.items()})
        for each in (*made.servers, *made.sentinels):
            stack.callback(each.close)
        made.start()
        yield made


def wait_until(fact: Any, what: str, timeout: float = START_SECONDS) -> None:
    """Wait until this is so; a server that does not answer yet is asked again."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(RedisError):
            if fact():
                return
        assert time.monotonic() < deadline, f"Waited {timeout:g} s for {what}, in vain."
        time.sleep(LOOK_SECONDS)
