"""Each form of REDIS_URL on a real server (B9): a client, a producer, Celery and Flower connect alike, and verified.

And a password that is rotated in REDIS_URL_FILE (B20) is read again.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from flower.views import BaseHandler
from harness.certificates import Authority
from redis import AuthenticationError, Redis, RedisError

from worker.broker.app import make_app
from worker.broker.flower_options import show_queues_of
from worker.client import CancelClient
from worker.dev.embedded import find_redis_server, free_port
from worker.errors import InboxUnavailableError
from worker.streams import connect_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Part = Callable[[str, pytest.MonkeyPatch], tuple[int, int]]

PASSWORD = "p/w#of@redis"
ENCODED = "p%2Fw%23of%40redis"


class Server:
    """A Redis with a password, at a port and at a socket file."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.socket = folder / "redis.sock"
        words = {"port": self.port, "unixsocket": self.socket, "requirepass": PASSWORD, "save": "", "dir": folder}
        command = [find_redis_server(), *(word for name, value in words.items() for word in (f"--{name}", str(value)))]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.admin: Any = Redis(port=self.port, password=PASSWORD)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(RedisError):
                self.admin.ping()
                return
            time.sleep(0.02)

    def close(self) -> None:
        self.admin.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with closing(Server(tmp_path_factory.mktemp("redis"))) as made:
        yield made


def _seen(about: dict[str, Any]) -> tuple[int, int]:
    return int(about["db"]), int(about["resp"])


def a_client(url: str, _: pytest.MonkeyPatch) -> tuple[int, int]:
    """Ask as the threads of a worker and the commands do; return the database and the protocol that Redis sees."""
    with closing(connect_redis(url)) as redis:
        return _seen(redis.client_info())


def a_producer(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with closing(CancelClient(url)) as oms:
        oms.enqueue("shop-1", "1001")
        return _seen(oms._redis.client_info())


def celery(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setenv("REDIS_URL", url)
    with make_app() as app, app.connection_for_write() as connection:
        shown = connection.as_uri(include_password=True)
        assert not [secret for secret in (PASSWORD, ENCODED) if secret in shown]
        seen = _seen(connection.default_channel.client.client_info())
        with app.pool.acquire() as pooled:  # by which remote commands go, and their answers
            assert seen == _seen(pooled.default_channel.client.client_info())
        return seen


def flower(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setattr(BaseHandler, "get_broker", None)
    with make_app() as app:
        show_queues_of(app)

    async def look() -> tuple[int, int]:
        broker: Any = BaseHandler.get_broker(None)
        seen = _seen(await broker.redis.client_info())
        assert [{"name": "cancellations", "messages": 0}] == await broker.queues(["cancellations"])
        return seen

    return asyncio.run(look())


every_part = pytest.mark.parametrize("part", [a_client, a_producer, celery, flower], ids=lambda part: part.__name__)


@every_part
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ("/0", (0, 3)),
        ("?db=3", (3, 3)),
        ("/1?db=3&protocol=2", (3, 2)),
        ("/2?protocol=3&health_check_interval=10", (2, 3)),
        ("?health_check_interval=0&socket_timeout=4&socket_connect_timeout=2&retry_on_timeout=yes", (0, 3)),
        ("?client_name=oms&max_connections=100&socket_keepalive=false&protocol=2", (0, 2)),
    ],
)
@pytest.mark.parametrize("who", ["before the host", "after a question mark"])
def test_an_address_leads_each_part_to_one_database_by_one_protocol(
    server: Server, monkeypatch: pytest.MonkeyPatch, part: Part, words: str, seen: tuple[int, int], who: str
) -> None:
    place = f"127.0.0.1:{server.port}"
    if who == "before the host":
        url = f"redis://:{ENCODED}@{place}{words}"
    else:
        url = f"redis://{place}{words}{'&' if '?' in words else '?'}username=default&password={ENCODED}"

    assert seen == part(url, monkeypatch)


@every_part
@pytest.mark.parametrize(("words", "seen"), [("", (0, 3)), ("?db=2", (2, 3)), ("?db=1&protocol=2", (1, 2))])
def test_a_socket_file_leads_each_part_to_one_database(
    server: Server, monkeypatch: pytest.MonkeyPatch, part: Part, words: str, seen: tuple[int, int]
) -> None:
    assert seen == part(f"unix://default:{ENCODED}@{server.socket}{words}", monkeypatch)


# -- TLS


class Terminator:
    """Speaks TLS before a server that does not, as a managed Redis does; a server in a wheel has no TLS."""

    def __init__(self, behind: int, certificate: Path, clients: Path | None = None) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(clients)
        self._behind = behind
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._listening.wait(10)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._join, "127.0.0.1", 0, ssl=self._context) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._listening.set()
            await self._ended.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_redis, from_redis = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            await asyncio.gather(self._pass_on(reader, from_redis), self._pass_on(to_redis, writer))
        finally:
            for each in (writer, from_redis):
                each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture
def with_tls(server: Server, authority: Authority) -> Iterator[Terminator]:
    with closing(Terminator(server.port, authority.sign("127.0.0.1"))) as made:
        yield made


@every_part
def test_a_server_of_the_named_authority_is_trusted_by_each_part(
    with_tls: Terminator, authority: Authority, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    url = f"rediss://:{ENCODED}@127.0.0.1:{with_tls.port}/4?ssl_ca_certs={authority.certificate}"

    assert (4, 3) == part(url, monkeypatch)


@every_part
def test_a_server_that_nobody_vouches_for_is_trusted_by_no_part(
    with_tls: Terminator, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    with pytest.raises(Exception, match="certificate verify failed") as refused:
        part_raising_its_cause(part, f"rediss://:{ENCODED}@127.0.0.1:{with_tls.port}/4", monkeypatch)

    assert PASSWORD not in str(refused.value)


@every_part
@pytest.mark.parametrize(("words", "trusted"), [("", False), ("&ssl_check_hostname=false", True)])
def test_a_server_of_another_name_is_trusted_only_where_the_address_says_so(
    server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch, part: Part, words: str, trusted: bool
) -> None:
    with closing(Terminator(server.port, authority.sign("127.0.0.9"))) as elsewhere:
        url = f"rediss://:{ENCODED}@127.0.0.1:{elsewhere.port}/4?ssl_ca_certs={authority.certificate}{words}"
        if trusted:
            assert (4, 3) == part(url, monkeypatch)
        else:
            with pytest.raises(Exception, match="IP address mismatch"):
                part_raising_its_cause(part, url, monkeypatch)


@every_part
def test_a_certificate_of_the_client_is_shown_by_each_part(
    server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    own = authority.sign("127.0.0.2")
    certificate = authority.sign("127.0.0.1")
    with closing(Terminator(server.port, certificate, clients=authority.certificate)) as strict:
        url = f"rediss://:{ENCODED}@127.0.0.1:{strict.port}/4?ssl_ca_certs={authority.certificate}"

        assert (4, 3) == part(f"{url}&ssl_certfile={own}&ssl_keyfile={own}", monkeypatch)


def part_raising_its_cause(part: Part, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise what the part met first: a producer says only that Redis could not be reached."""
    try:
        part(url, monkeypatch)
    except InboxUnavailableError as error:
        raise error.__cause__ or error from None


def test_a_file_of_an_address_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(ValueError, match=r"REDIS_URL: ssl_ca_certs names /nowhere/ca\.pem, which cannot be read"):
        connect_redis(f"rediss://:{ENCODED}@127.0.0.1:{server.port}?ssl_ca_certs=/nowhere/ca.pem")


# -- a password that changes


@pytest.fixture
def rotating(server: Server) -> Iterator[Callable[[str], None]]:
    """Give the user `oms` another password, and end its sessions, as a failover does."""

    def rotate(password: str) -> None:
        server.admin.execute_command("ACL", "SETUSER", "oms", "reset", "on", f">{password}", "~*", "&*", "+@all")
        server.admin.execute_command("CLIENT", "KILL", "USER", "oms")

    yield rotate
    server.admin.execute_command("ACL", "DELUSER", "oms")


@pytest.mark.parametrize("part", [a_client, celery, flower], ids=lambda part: part.__name__)
def test_a_password_that_was_rotated_in_the_file_is_read_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rotating: Callable[[str], None], part: Part
) -> None:
    file = tmp_path / "redis"
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL_FILE", str(file))
    monkeypatch.setattr(pytest.MonkeyPatch, "setenv", lambda *_: None)  # the parts find it in the file
    address = f"redis://oms:%s@127.0.0.1:{server.port}/0\n"
    rotating("first")
    file.write_text(address % "first")
    with closing(connect_redis((address % "first").strip())) as lasting:
        lasting.set_retry(None)  # type: ignore[arg-type]
        assert (0, 3) == part((address % "first").strip(), monkeypatch)
        lasting.ping()
        rotating("second")
        with pytest.raises(RedisError):
            lasting.ping()
        with pytest.raises(AuthenticationError):
            lasting.ping()
        file.write_text("half a li")  # while it is being replaced, what was known is tried

        with pytest.raises(AuthenticationError):
            lasting.ping()
        file.write_text(address % "second")

        assert lasting.ping()
        assert (0, 3) == part((address % "second").strip(), monkeypatch)


def test_a_password_that_comes_later_is_read_too(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "redis").write_text(f"redis://127.0.0.1:{server.port}/0")
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "redis"))
    with closing(connect_redis(f"redis://127.0.0.1:{server.port}/0")) as redis:
        with pytest.raises(AuthenticationError):
            redis.ping()
        (tmp_path / "redis").write_text(f"redis://:{ENCODED}@127.0.0.1:{server.port}/0")
        redis.connection_pool.disconnect()

        assert redis.ping()


def test_an_address_of_its_own_is_not_overtaken_by_the_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "redis").write_text("redis://:another@127.0.0.1:1/0")
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "redis"))

    assert (0, 3) == a_client(f"redis://:{ENCODED}@127.0.0.1:{server.port}/0", monkeypatch)
