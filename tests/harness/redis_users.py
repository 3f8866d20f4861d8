"""A Redis or Valkey with the users that ops/redis ships, started as its start.sh does.

Knows the files; does not know what a user may do.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from harness.parts import part
from worker.dev.embedded import EmbeddedRedis, find_redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.certificates import Authority

SHIPPED = Path(__file__).parents[2] / "ops" / "redis"
USERS = ("admin", "producer", "events", "worker", "flower")


def password_of(user: str) -> str:
    return f"password-of-{user}"


class RedisWithUsers(EmbeddedRedis):
    """Nobody reaches it but the users of a users.acl."""

    def __init__(self, folder: Path, server: str, acl: str = "") -> None:
        super().__init__(folder)
        for name in ("users.acl", "start.sh"):
            (folder / name).write_text((SHIPPED / name).read_text())
        if acl:
            (folder / "users.acl").write_text(acl)
        self._secrets = folder / "secrets"
        self._secrets.mkdir()
        for name in users_of((folder / "users.acl").read_text()):
            (self._secrets / f"redis_{name}").write_text(f"{password_of(name)}\n")
        self._server = server

    def _command(self) -> list[str]:
        given = {"SECRETS": self._secrets, "USERS": self._folder / "users", "REDIS_SERVER": self._server}
        full = ["--maxmemory", "64mb", "--maxmemory-policy", "noeviction"]
        return [
            "env",
            *(f"{name}={value}" for name, value in given.items()),
            "sh",
            str(self._folder / "start.sh"),
            *full,
        ]

    def _connect(self) -> Redis:
        return Redis(port=self.port, socket_timeout=1, username="admin", password=password_of("admin"))

    def url_of(self, user: str) -> str:
        return self.url.replace("://", f"://{user}:{password_of(user)}@")

    def as_user(self, user: str) -> Any:
        return Redis.from_url(self.url_of(user), socket_timeout=60)


class RedisWithTls(RedisWithUsers):
    """Speaks TLS only, and only with who has a certificate of the same authority."""

    def __init__(
        self, folder: Path, authority: Authority, address: str = "127.0.0.1", options: Sequence[str] = ()
    ) -> None:
        super().__init__(folder, debians_redis(folder))
        self.url = f"rediss://127.0.0.1:{self.port}/0"
        self._authority = authority
        self._certificate = authority.sign(address)
        self._client = authority.sign("127.0.0.2")
        self._options = options

    def _command(self) -> list[str]:
        return [*super()._command(), *self._options]

    def _listening(self) -> dict[str, Any]:
        pem, bundle = self._certificate, self._authority.certificate
        files = {"tls-cert-file": pem, "tls-key-file": pem, "tls-ca-cert-file": bundle}
        return {"port": 0, "tls-port": self.port, "tls-auth-clients": "yes", **files}

    def _connect(self) -> Redis:
        # Whose certificate it is, a test asks; here only whether it runs.
        return Redis.from_url(self.url_of("admin"), socket_timeout=5, ssl_check_hostname=False)

    def url_of(self, user: str, authority: Authority | None = None, *, anonymous: bool = False) -> str:
        """Return the address for a user who trusts an authority; `anonymous`: without a certificate of its own."""
        own = "" if anonymous else f"&ssl_certfile={self._client}&ssl_keyfile={self._client}"
        return super().url_of(user) + f"?ssl_ca_certs={(authority or self._authority).certificate}{own}"


def users_of(acl: str) -> list[str]:
    return [line.split()[1] for line in acl.splitlines() if line.startswith("user ") and " default " not in line]


def debians_redis(folder: Path) -> str:
    """Return a Redis 7 server: Debian's one program is what it is called."""
    called = folder / "redis-server"
    called.symlink_to(part("redis-sentinel"))
    return str(called)


def server_of(kind: str, folder: Path) -> str:
    return debians_redis(folder) if kind == "redis 7" else find_redis_server()


@contextmanager
def redis_with_users(folder: Path, kind: str, acl: str = "") -> Iterator[RedisWithUsers]:
    made = RedisWithUsers(folder, server_of(kind, folder), acl)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def overheard(server: RedisWithUsers) -> Iterator[set[str]]:
    """Listen to what the server is asked meanwhile, also by scripts; the commands' names are there afterwards."""
    heard: set[str] = set()
    with server.as_user("admin") as ours, server.as_user("admin").monitor() as monitor:
        listener = threading.Thread(target=_listen, args=(monitor, heard), daemon=True)
        listener.start()
        try:
            yield heard
        finally:  # or it would listen on, to a test that has failed
            ours.echo(_ENOUGH)
            listener.join(60)
        assert not listener.is_alive()


_ENOUGH = "enough was heard"


def _listen(monitor: Any, heard: set[str]) -> None:
    while _ENOUGH not in (said := monitor.next_command()["command"]):
        words = said.lower().split()
        heard |= {words[0], "|".join(words[:2])}


def refusals(redis: Any) -> Sequence[str]:
    """Return what the server has refused to whom."""
    return [f"{each['username']}: {each['reason']} {each['object']} ({each['context']})" for each in redis.acl_log()]
