"""The words that a REDIS_URL may hold after its ?, each with what it may say. Pure; knows no address.

redis-py takes more, and kombu others: what one of them could not follow is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.inputs.values import problem_of_number

if TYPE_CHECKING:
    from collections.abc import Callable


def _number(least: float, most: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        refusal = f"a {'whole ' if kind is int else ''}number from {least:g} to {most:g}"
        if problem_of_number(text) or (kind is int and not text.isdigit()):
            raise ValueError(refusal)
        if not least <= (value := kind(text)) <= most:
            raise ValueError(refusal)
        return value

    return read


def _truth(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (value := known.get(text.lower())) is None:
        raise ValueError("true or false")
    return value


def _text(text: str) -> str:
    if not text or " " in text:
        raise ValueError("a word without spaces")
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def _secret(text: str) -> str:
    return text


def _verification(text: str) -> str:
    if text.lower() not in {"required", "cert_required"}:
        raise ValueError(
            "required: a server that nobody verifies could be anyone (name your own authority with ssl_ca_certs)"
        )
    return "required"


REDIS_WORDS: dict[str, Callable[[str], Any]] = {
    "db": _number(0, 99_999, int),
    "username": _text,
    "password": _secret,
    "sentinel_username": _text,
    "sentinel_password": _secret,
    "protocol": _number(2, 3, int),
    "client_name": _text,
    # Above the two seconds for which an idle worker waits for an entry; below what would hold a thread.
    "socket_timeout": _number(3, 60, float),
    "socket_connect_timeout": _number(0.1, 60, float),
    "socket_keepalive": _truth,
    "health_check_interval": _number(0, 3600, int),
    "retry_on_timeout": _truth,
    "max_connections": _number(100, 100_000, int),  # Celery loses messages with few
    "ssl_cert_reqs": _verification,
    "ssl_check_hostname": _truth,
    "ssl_ca_certs": _path,
    "ssl_ca_path": _path,
    "ssl_certfile": _path,
    "ssl_keyfile": _path,
    "ssl_password": _secret,
    "ssl_min_version": _number(771, 772, int),  # TLS 1.2 and 1.3
    "ssl_ciphers": _text,
}
# Known to redis-py or kombu, so that to repeat one tells nothing of a password.
UNSUPPORTED_WORDS = {"credential_provider", "decode_responses", "retry_on_error", "timeout", "virtual_host"}
