"""Addresses in settings: what one may say, what it means, and the passwords in it. Pure; opens nothing.

Raises ValueError with a sentence that names the setting and repeats no part of the address, which may be one of a
password. An address of Redis is read here once, so that redis-py, Celery and Flower cannot read it differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_plus, urlsplit

from worker.inputs.redis_words import REDIS_WORDS, UNSUPPORTED_WORDS

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
USERINFO = re.compile(r"://[^:/?#@]*:(.*)@", re.DOTALL)
PASSWORD_WORDS = frozenset({"password", "ssl_password", "sslpassword", "sentinel_password"})
SERVICE = re.compile(r"[A-Za-z0-9._-]+")
SENTINEL_SCHEMES = ("sentinel", "sentinels")
SENTINEL_PORT = 26379
SENTINEL_WORDS = {"sentinel_username": "username", "sentinel_password": "password"}  # who asks the sentinels
TLS_SCHEMES = ("rediss", "sentinels")

PERCENT_ENCODE = "percent-encode the characters of its password (/ is %2F, @ is %40, # is %23, ? is %3F, % is %25)"


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """Where a Redis is, who asks, and how: `options` are arguments of a redis-py connection."""

    scheme: str  # redis, rediss, unix, sentinel or sentinels
    place: Mapping[str, Any]  # host and port, or path, or the service that the sentinels watch
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()  # host and port of each
    sentinel_credentials: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def tls(self) -> bool:
        """Whether its servers, and its sentinels, speak TLS."""
        return self.scheme in TLS_SCHEMES

    @property
    def where(self) -> str:
        """Say where it is, for people."""
        sentinels = ",".join(f"{host}:{port}" for host, port in self.sentinels)
        return " ".join(filter(None, (*map(str, self.place.values()), sentinels)))

    @property
    def credentials(self) -> tuple[str, ...]:
        """What AUTH is given; empty where the address names nobody."""
        if self.username:
            return (self.username, self.password or "")
        return (self.password,) if self.password else ()


def parse_redis_url(url: str) -> RedisAddress:
    """Read a REDIS_URL as redis-py does. Raises ValueError for what cannot mean the same to every part."""
    if url.partition("://")[0] in SENTINEL_SCHEMES:
        return _parse_sentinel_url(url)
    parts = _split("REDIS_URL", url)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("REDIS_URL must begin with redis://, rediss://, unix:/// or sentinel://.")
    place = _socket_path(parts) if parts.scheme == "unix" else _host_and_port("REDIS_URL", parts)
    words = _query(parts)
    if watched := words.keys() & SENTINEL_WORDS.keys():
        raise ValueError(f"REDIS_URL says {min(watched)}, but only sentinel:// asks one: leave it out.")
    return _address(parts, words, place=place)


def _parse_sentinel_url(url: str) -> RedisAddress:
    """Read sentinel://user:password@host:port,host:port/service/database; the user is the servers'."""
    scheme, _, rest = url.partition("://")
    netloc, _, path = rest.partition("/")
    who, at, hosts = netloc.rpartition("@")
    each = [_split("REDIS_URL", f"{scheme}://{who}{at}{host}/{path}") for host in hosts.split(",")]
    service, _, database = each[0].path.strip("/").partition("/")
    if not SERVICE.fullmatch(service) or not all(parts.hostname for parts in each):
        raise ValueError(
            "REDIS_URL must name sentinels and what they watch, as in sentinel://host:26379,host:26379/mymaster/0; "
            f"or {PERCENT_ENCODE}."
        )
    words = _query(each[0])
    credentials = {SENTINEL_WORDS[name]: words.pop(name) for name in SENTINEL_WORDS if name in words}
    places = [_host_and_port("REDIS_URL", parts, SENTINEL_PORT) for parts in each]
    return _address(
        each[0]._replace(path=f"/{database}"),
        words,
        place={"service": service},
        sentinels=tuple((place["host"], place["port"]) for place in places),
        sentinel_credentials=credentials,
    )


def _address(parts: SplitResult, words: dict[str, Any], **where: Any) -> RedisAddress:
    tls = [name for name in words if name.startswith("ssl_")]
    if tls and parts.scheme not in TLS_SCHEMES:
        speaks = f"only {'sentinels' if parts.scheme == 'sentinel' else 'rediss'}:// speaks TLS"
        raise ValueError(f"REDIS_URL says {tls[0]}, but {speaks}: write that, or leave it out.")
    if parts.scheme == "unix" and "socket_keepalive" in words:
        raise ValueError("REDIS_URL says socket_keepalive, which a unix:// socket has not: leave it out.")
    who = {name: words.pop(name, None) for name in ("username", "password")}
    return RedisAddress(
        scheme=parts.scheme,
        username=unquote(parts.username or "") or who["username"],
        password=unquote(parts.password or "") or who["password"],
        options={"db": _database(parts), **words, **_verified(parts.scheme, words)},
        **where,
    )


def _split(setting: str, url: str) -> SplitResult:
    # `urlsplit` drops line breaks and tabs in silence, and its errors repeat what it was given.
    if not url.isprintable() or " " in url:
        raise ValueError(f"{setting} holds a space or a character that cannot be seen: write it anew.")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        raise ValueError(f"{setting} cannot be read as an address: {PERCENT_ENCODE}, and check its port.") from None
    if "@" in parts.path or parts.fragment or url.endswith("#"):
        raise ValueError(f"{setting} holds a / before its last @, or a #: {PERCENT_ENCODE}.")
    return parts


def _host_and_port(setting: str, parts: SplitResult, usual: int = 6379) -> dict[str, Any]:
    host = unquote(parts.hostname or "")
    if parts.port == 0 or (host and not HOST.fullmatch(host)):
        raise ValueError(f"{setting} names no host and port that can exist: {PERCENT_ENCODE}, or correct it.")
    return {"host": host or "localhost", "port": parts.port or usual}


def _socket_path(parts: SplitResult) -> dict[str, Any]:
    if parts.hostname or parts.port or not parts.path.strip("/"):
        raise ValueError("REDIS_URL must name an absolute path after unix://, as in unix:///run/redis.sock.")
    return {"path": unquote(parts.path)}


def _database(parts: SplitResult) -> int:
    if parts.scheme == "unix" or not parts.path.strip("/"):
        return 0
    # redis-py would take database 0 in silence.
    if not re.fullmatch(r"/[0-9]{1,5}/?", unquote(parts.path), re.ASCII):
        raise ValueError(f"REDIS_URL names no database: its path must be one number, as in /0; or {PERCENT_ENCODE}.")
    return int(unquote(parts.path).strip("/"))


def _query(parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        read = REDIS_WORDS.get(name)
        if read is None:
            known = f" ({name})" if name in UNSUPPORTED_WORDS else ""
            raise ValueError(
                f"REDIS_URL has a word after its ? that not every part can follow{known}: leave it out, or, if it "
                f"belongs to the password, {PERCENT_ENCODE}."
            )
        try:
            found.setdefault(name, read(text))  # redis-py takes the first
        except ValueError as error:
            raise ValueError(f"REDIS_URL: {name} must be {error}.") from None
    return found


def _verified(scheme: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which the server's certificate is verified, said outright: not every part's default."""
    if scheme not in TLS_SCHEMES:
        return {}
    if words.get("ssl_check_hostname") is False and not words.keys() & {"ssl_ca_certs", "ssl_ca_path"}:
        raise ValueError(
            "REDIS_URL says ssl_check_hostname=false, so that any server with any certificate would do: leave it out, "
            "or name your own authority with ssl_ca_certs."
        )
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": words.get("ssl_check_hostname", True)}


def check_base_url(url: str) -> str:
    """Return Trackstar's address without a trailing slash. Raises ValueError for one that is not safe to call."""
    parts = _split("TRACKSTAR_BASE_URL", url)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise ValueError("TRACKSTAR_BASE_URL must begin with https:// and name a host.")
    if "@" in parts.netloc or "\\" in url:
        raise ValueError(
            "TRACKSTAR_BASE_URL may hold no user and no password: what stands before an @ is not its host."
        )
    if parts.path.strip("/") or parts.query or "?" in url:
        # Below a wrong path every order would be answered with 404, which reads like "no such order".
        raise ValueError("TRACKSTAR_BASE_URL must end after the host and its port: no path, no ?.")
    _host_and_port("TRACKSTAR_BASE_URL", parts)
    if parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise ValueError(
            "TRACKSTAR_BASE_URL begins with http://, which shows the API key to the network: use https://."
        )
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_sentry_dsn(dsn: str) -> None:
    """Raise ValueError where this is no DSN."""
    refusal = "SENTRY_DSN must look like https://KEY@HOST/NUMBER, as Sentry shows it under Client Keys."
    try:
        parts = urlsplit(dsn)
        _host_and_port("SENTRY_DSN", parts)
    except ValueError:
        raise ValueError(refusal) from None
    project = parts.path.rpartition("/")[2]
    known = parts.scheme in {"https", "http"} and parts.username and parts.hostname
    if not (known and project.isascii() and project.isdigit()):
        raise ValueError(refusal)


def passwords_in(url: str) -> list[str]:
    """Return every password of an address as it stands there and as it is meant, also where it is no good address."""
    found = [match[1]] if (match := USERINFO.search(url)) else []
    query = url.partition("?")[2]
    found += [value for name, _, value in (word.partition("=") for word in query.split("&")) if name in PASSWORD_WORDS]
    return [each for each in dict.fromkeys(form for raw in found for form in _forms(raw)) if each]


def _forms(raw: str) -> tuple[str, ...]:
    return (raw, unquote(raw), unquote_plus(raw))
