"""What a server refuses, by its code word, and what a person can do. Pure; knows errors by class and text.

Never an error's text: it may hold an address, a row, a job.
"""

from __future__ import annotations

import re

_REMEDIES = {
    "OOM": "Redis is full (maxmemory) and takes nothing new: free memory or raise maxmemory",
    "MISCONF": "Redis cannot save to its disk (MISCONF) and takes nothing new: look at its log and its disk",
    "READONLY": "This Redis is a replica and cannot be written to (READONLY): let REDIS_URL name the primary",
    "NOREPLICAS": "Redis wants more replicas than it has (min-replicas-to-write): bring its replicas back",
    "MASTERDOWN": "This Redis is a replica that has lost its primary: let REDIS_URL name the primary",
    "NoPrimaryError": "No Sentinel of REDIS_URL names a primary: look at the sentinels, or correct their addresses",
    "LOADING": "Redis is still loading its data: it goes on by itself",
    "BUSY": "Redis is busy with somebody's script: it goes on when that has ended",
    "NOAUTH": "Redis wants a password: put it into REDIS_URL",
    "WRONGPASS": "Redis refuses the user or the password of REDIS_URL: correct it",
    "NOSCRIPT": "Redis does not keep the script that it was just given: try again",
    "WRONGTYPE": "A key of ours holds something of another type: rename or delete it",
    "MOVED": "This Redis is a part of a cluster, which is not supported: use one server, or Sentinel",
    "CLUSTERDOWN": "This Redis is a part of a cluster, which is not supported, and is down: use one server",
    "CROSSSLOT": "This Redis is a part of a cluster, which is not supported: use one server, or Sentinel",
    "EXHAUSTED": "A stranger's id has used up the ids of a stream: a worker repairs that within seconds",
    "NOPERM": "The user of REDIS_URL lacks a right (NOPERM): ops/redis/users.acl has those of each part",
    "TLS_UNTRUSTED": "The certificate of this Redis is not trusted: let ssl_ca_certs in REDIS_URL name its authority",
    "TLS_OTHER_NAME": "The certificate of this Redis does not name the host in REDIS_URL: correct one of them",
    "TLS_REFUSED": "This Redis refuses our certificate, or none: ssl_certfile and ssl_keyfile in REDIS_URL name it",
}
_DATABASE_REMEDIES = {
    "ReadOnlySqlTransaction": "The database is read-only: make it writable, or let DATABASE_URL name the primary",
    "InsufficientPrivilege": "The role of DATABASE_URL lacks a right: run ops/postgres/roles.sql",
}
# redis-py drops the code word of these and names a class after it.
_CLASSES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "BusyLoadingError": "LOADING",
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "MovedError": "MOVED",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ClusterCrossSlotError": "CROSSSLOT",
}
# A script's error carries the word of the command that failed, in front or after "ERR Error running script ...:".
_WORD = re.compile(rf"(?:^|[\s:-])({'|'.join(_REMEDIES)})\b")
_WRONG_PASSWORD = re.compile("WRONGPASS|invalid username-password pair")  # redis-py drops the code word
_COMMAND = re.compile(r"'([a-z]{2,16}(?:\|[a-z-]{2,16})?)' command")
# OpenSSL's words in an error of redis-py's, each with ours; the first that is found counts.
_TLS = {
    "IP address mismatch": "TLS_OTHER_NAME",
    "Hostname mismatch": "TLS_OTHER_NAME",
    "CERTIFICATE_VERIFY_FAILED": "TLS_UNTRUSTED",
    "ALERT_HANDSHAKE_FAILURE": "TLS_REFUSED",
    "ALERT_CERTIFICATE_REQUIRED": "TLS_REFUSED",
    "ALERT_UNKNOWN_CA": "TLS_REFUSED",
    "ALERT_BAD_CERTIFICATE": "TLS_REFUSED",
    "ALERT_CERTIFICATE_EXPIRED": "TLS_REFUSED",
}


def word_of(error: BaseException) -> str:
    """Return a bounded word for an error: Redis' code word where Redis has refused something, else its class."""
    kind, text = type(error).__name__, _said_by_redis(error)
    if not type(error).__module__.startswith("redis."):
        return kind
    if kind in _CLASSES:
        return "WRONGPASS" if _WRONG_PASSWORD.search(text) else _CLASSES[kind]
    if kind == "ConnectionError":
        return next((word for words, word in _TLS.items() if words in text), kind)
    if "exhausted the last possible ID" in text:
        return "EXHAUSTED"
    # The second in a script, which Redis 7.0 does not name.
    if "no permissions to" in text.lower() or "can't run this command" in text:
        return "NOPERM"
    found = _WORD.search(text)
    return found.group(1) if found else kind


def _said_by_redis(error: BaseException) -> str:
    # A pipeline's error quotes the command first.
    return str(error).rpartition("caused error: ")[2][:500]


def remedy_of(error: BaseException) -> str | None:
    """Say in a sentence, without a full stop, what Redis refuses and what to do; None where it refused nothing."""
    word = word_of(error)
    if word == "NOPERM" and (command := _COMMAND.search(_said_by_redis(error))):
        name = command.group(1)
        return f"The user of REDIS_URL lacks the right to run {name.upper()} (NOPERM): `ACL SETUSER ... +{name}`"
    return _REMEDIES.get(word)


def fault(error: BaseException | None) -> str:
    """Return what an error is, and what to do where that is known."""
    cause = getattr(error, "orig", None) or error or Exception()
    kind, word = type(cause).__name__, word_of(cause)
    remedy = remedy_of(cause) or _DATABASE_REMEDIES.get(kind)
    return f"{kind}: {remedy}" if remedy else kind if kind == word else f"{kind} {word}"
