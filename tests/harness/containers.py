"""Runs the containers of `ops/compose.yaml` without an engine: Linux' own namespaces, networks and rights, as root.

A container has the users, rights, mounts, networks and names that the file gives it. Whether a network of an engine
leads out, only an engine can show.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.contain import NO_RIGHTS
from harness.deployment import Worker
from harness.images import ENTRYPOINTS, ENVIRONMENTS, PATH, PROGRAMS, etc, programs
from harness.parts import needs, part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.compose import Container

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
START_SECONDS = 60.0
STOP_SECONDS = 60.0


class Machine:
    """One machine with the networks of the file, and the containers that were started on it."""

    def __init__(self, folder: Path, networks: Sequence[str], replicas: Mapping[str, int]) -> None:
        needs(os.geteuid() == 0 and bool(shutil.which("unshare")), "make namespaces and networks as root")
        self.folder = folder
        self.networks = list(networks)
        # Each container of each service, in the file's order: its place is the end of its address.
        self.places = [f"{service}-{number}" for service, many in replicas.items() for number in range(many)]
        self.volumes: dict[str, Path] = {}
        self.running: dict[str, Running] = {}
        self._holder = subprocess.Popen([part("unshare"), "--net", "sleep", "infinity"])
        wait_for(lambda: _net(self._holder.pid) != _net(os.getpid()), "a network of its own")
        self.ip("link", "set", "lo", "up")
        for number, name in enumerate(self.networks):
            self.ip("link", "add", name, "type", "bridge")
            self.ip("address", "add", f"10.77.{number}.1/24", "dev", name)
            self.ip("link", "set", name, "up")

    def ip(self, *words: str, inside: int | None = None) -> None:
        net = f"--net=/proc/{inside or self._holder.pid}/ns/net"
        subprocess.run([part("nsenter"), net, part("ip"), *words], check=True)

    def address(self, place: str, network: str) -> str:
        return f"10.77.{self.networks.index(network)}.{self.places.index(place) + 10}"

    def names(self, networks: Sequence[str], members: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return the services that a container on these networks knows, each with the addresses of its containers."""
        found: dict[str, list[str]] = {}
        for place in self.places:
            service = place.rpartition("-")[0]
            found.setdefault(service, [])
            found[service] += [self.address(place, each) for each in networks if each in members[service]]
        return {service: addresses for service, addresses in found.items() if addresses}

    def start(
        self,
        given: Container,
        members: Mapping[str, Sequence[str]],
        number: int = 0,
        words: Sequence[str] | None = None,
        binds: Sequence[tuple[str, str | Path]] = (),
        **streams: Any,
    ) -> Running:
        """Start a container of a service; `words` come in the place of its command."""
        place = f"{given.service}-{number}"
        names = self.names(given.networks, members)
        folder = self.folder / f"{place}-{len(list(self.folder.glob(f'{place}-*')))}"
        folder.mkdir()
        folder.chmod(0o755)
        spec = self._spec(given, names, folder, words, binds)
        running = Running(given, folder, spec, streams)
        self.running[place] = running
        for network in given.networks:
            self._connect(place, network, running.pid)
        running.go(names)
        return running

    def _connect(self, place: str, network: str, pid: int) -> None:
        """Put one end of a cable into the container, the other into the network."""
        number = self.networks.index(network)
        cable, end = f"c{pid}.{number}", f"eth{number}"
        self.ip("link", "add", cable, "type", "veth", "peer", "name", end, "netns", str(pid))
        self.ip("link", "set", cable, "master", network, "up")
        self.ip("address", "add", f"{self.address(place, network)}/24", "dev", end, inside=pid)
        self.ip("link", "set", end, "up", inside=pid)
        self.ip("link", "set", "lo", "up", inside=pid)

    def _spec(
        self,
        given: Container,
        names: dict[str, list[str]],
        folder: Path,
        words: Sequence[str] | None,
        binds: Sequence[tuple[str, str | Path]],
    ) -> Path:
        ours = [ROOT / each for each in (".venv", "worker", "migrations", "tests/harness")]
        mounts = [
            (str(each), str(each)) for each in (*ours, Path(sys.base_prefix)) if Path("/usr") not in each.parents
        ]
        mounts += [(f"/run/secrets/{name}", str(path)) for name, path in given.secrets.items()]
        mounts += [(place, str(path)) for place, path in (*given.mounts.items(), *binds)]
        entrypoint = given.entrypoint or ENTRYPOINTS[given.image]
        command = given.command if words is None else list(words)
        spec = {
            "root": str(folder / "root"),
            "binds": mounts,
            "links": [(f"{PROGRAMS}/{name}", path) for name, path in programs(given.image).items()],
            "volumes": [(place, str(self._volume(given, name))) for place, name in given.volumes.items()],
            "tmpfs": given.tmpfs,
            "files": etc(names),
            "workdir": "/app",
            "user": given.user,
            "read_only": given.read_only,
            "no_rights": given.no_rights,
            "words": [*entrypoint, *(command or [])],
            "environment": PATH | ENVIRONMENTS.get(given.image, {}) | given.environment,
        }
        (folder / "root").mkdir()
        (folder / "spec.json").write_text(json.dumps(spec))
        return folder / "spec.json"

    def _volume(self, given: Container, name: str) -> Path:
        """Return the folder of a volume; a new one is its user's, as the images make theirs."""
        if name not in self.volumes:
            self.volumes[name] = made = self.folder / name
            made.mkdir()
            uid, gid = map(int, given.user.split(":"))
            os.chown(made, uid, gid)
        return self.volumes[name]

    def close(self) -> None:
        for each in self.running.values():
            each.kill()
        self._holder.kill()
        self._holder.wait()


class Running(Worker):
    """A container that runs, or has run."""

    def __init__(self, given: Container, folder: Path, spec: Path, streams: dict[str, Any]) -> None:
        self.given = given
        self.log = folder / "log"
        self._names: subprocess.Popen[str] | None = None
        apart: list[str | Path] = [part("unshare"), "--net", "--mount", "--pid", "--fork", "--kill-child"]
        with self.log.open("ab") as output:
            how: dict[str, Any] = {"stdout": output, "stderr": output} | streams
            self.process = subprocess.Popen(
                [*apart, sys.executable, HERE / "contain.py", spec], stdin=subprocess.PIPE, **how
            )
        wait_for(self._inside, "its namespaces", self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def _inside(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children()
        return []

    def go(self, names: dict[str, list[str]]) -> None:
        """Let it begin, now that its networks are there."""
        net = f"--net=/proc/{self.pid}/ns/net"
        command: list[str | Path] = [part("nsenter"), net, sys.executable, HERE / "names.py", json.dumps(names)]
        self._names = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._names.stdout
        assert "listens\n" == self._names.stdout.readline()
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def finish(self, typed: bytes = b"", seconds: float = START_SECONDS) -> int:
        """Type something, and wait for its end; return its exit code."""
        self.process.communicate(typed, timeout=seconds)
        self._end_names()
        return self.process.returncode

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user, with its environment, as a check of its health is run."""
        assert self.alive, f"{self.given.service} has ended: {self.last_words()}"
        (first,) = self._inside()
        uid, gid = self.given.user.split(":")
        into = [part("nsenter"), f"--target={first.pid}", "--net", "--mount", "--pid", "--root", "--wd=/"]
        who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", *NO_RIGHTS]
        env = json.loads(self.log.with_name("spec.json").read_text())["environment"]
        return subprocess.run([*into, *who, *words], env=env, capture_output=True, text=True, check=False, timeout=60)

    def wait_until_healthy(self) -> None:
        wait_for(lambda: 0 == self.execute(*self.given.health).returncode, f"the health of {self.given.service}", self)

    def used(self) -> tuple[float, int]:
        """Return the memory that it has in use now, in megabytes, and its threads."""
        family = [each for first in self._inside() for each in (first, *first.children(recursive=True))]
        return sum(each.memory_full_info().pss / 2**20 for each in family), sum(each.num_threads() for each in family)

    def stop(self) -> int:
        """Ask its first process to end, as an engine does; return the exit code."""
        (first,) = self._inside()
        first.send_signal(signal.Signals[self.given.stop_signal])
        code = self.process.wait(STOP_SECONDS)
        self._end_names()
        return code

    def kill(self) -> None:
        for first in self._inside():  # with it all its processes end
            first.kill()
        if self.alive:
            self.process.kill()
        self.process.wait()
        if self.process.stdin:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self._end_names()

    def _end_names(self) -> None:
        if self._names is not None:
            self._names.kill()
            self._names.communicate()
            self._names = None


def wait_for(fact: Any, what: str, running: Running | None = None) -> None:
    """Wait until this is so; it is looked at again and again, as a kernel tells nobody."""
    deadline = time.monotonic() + START_SECONDS
    while not fact():
        said = running.last_words() if running else ""
        assert running is None or running.alive, f"It ended before {what}: {said}"
        assert time.monotonic() < deadline, f"Waited for {what}, in vain: {said}"
        time.sleep(0.05)


def _net(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())
