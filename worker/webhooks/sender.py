"""One try over the network: from the look-up of a name to the answer, within one time limit and a bounded size.

Connects only to an address that it has checked itself, follows no redirect, keeps no cookie and no connection. Knows
sockets and HTTP's first lines; does not know events, endpoints, or what follows from an answer.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import certifi
import msgspec
from msgspec import structs

from worker.cancellation.delivery import MAX_RETRY_AFTER, Tried
from worker.inputs.headers import read_retry_after
from worker.inputs.receivers import Receiver, may_be_asked
from worker.webhooks.proxying import tunnel_through

TRY_SECONDS = 15.0  # for the whole answer, the look-up of the name included
CONNECT_SECONDS = 5.0  # to one address
MAX_ADDRESSES = 4
MAX_BYTES = 64 * 1024  # of an answer
BODY_SECONDS = 1.0  # for the rest, once the answer is known: who has said 2xx has taken the event
MAX_INTERIM = 10  # 1xx before an answer
SAID_BYTES = 300
WITHOUT_BODY = frozenset({204, 304})  # by RFC 9110, whatever else the head says: then there is no rest to wait for

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
_FIRST_FINAL = 200


class Failed(Exception):  # noqa: N818 - what became of a try, in one of our words
    """A try that brought no answer; its text is one of our own words."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of all tries."""

    allow_private: bool = False
    tls: ssl.SSLContext
    proxy: str = ""
    seconds: float = TRY_SECONDS


class Answer(msgspec.Struct):
    """The head of an answer."""

    status: int
    headers: dict[bytes, bytes]


def trust(ca_bundle: str = "") -> ssl.SSLContext:
    """Trust the public certificates, and those in this file. Raises OSError where it cannot be read."""
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_bundle:
        context.load_verify_locations(cafile=ca_bundle)
    return context


async def send(receiver: Receiver, request: bytes, network: Network) -> Tried:
    """Send a request and return what became of it; raises nothing for what a receiver or a network does."""
    began = time.monotonic()

    def tried(reason: str, **more: Any) -> Tried:
        return Tried(reason=reason, seconds=time.monotonic() - began, **more)

    writer: list[asyncio.StreamWriter] = []
    try:
        async with asyncio.timeout(network.seconds):
            reader = await _connect(receiver, network, writer)
            writer[-1].write(request)
            await writer[-1].drain()
            answer = await _head(reader)
        word = "delivered" if _FIRST_FINAL <= answer.status < 300 else f"http_{answer.status}"  # noqa: PLR2004
        found = tried(word, status=answer.status, retry_after=_retry_after(answer))  # the rest is none of its time
        return structs.replace(found, said=await _rest(reader, answer))
    except Failed as failed:
        return tried(str(failed))
    except TimeoutError:
        return tried("timeout")
    except ssl.SSLError:
        return tried("tls_failed")
    except (OSError, asyncio.IncompleteReadError, ValueError):  # ValueError: a head of odd lines
        return tried("connection_lost" if writer else "connect_failed")
    finally:
        for each in writer:
            each.transport.abort()


async def _connect(receiver: Receiver, network: Network, opened: list[asyncio.StreamWriter]) -> asyncio.StreamReader:
    """Connect to an address that may be asked; what is opened is noted in `opened`, to be closed."""
    found = await _addresses(receiver)
    addresses = [each for each in found if may_be_asked(receiver, each, allow_private=network.allow_private)]
    if not addresses:
        raise Failed("address_not_allowed")
    for address in addresses[:MAX_ADDRESSES]:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(CONNECT_SECONDS):
                return await _connect_to(address, receiver, network, opened)
    raise Failed("connect_failed")


async def _connect_to(
    address: str, receiver: Receiver, network: Network, opened: list[asyncio.StreamWriter]
) -> asyncio.StreamReader:
    tls: dict[str, Any] = {"ssl": network.tls, "server_hostname": receiver.host} if receiver.scheme == "https" else {}
    try:
        if network.proxy:
            return await tunnel_through(network.proxy, address, receiver.port, network.tls, tls, opened)
        reader, writer = await asyncio.open_connection(address, receiver.port, limit=MAX_BYTES, **tls)
    except ssl.SSLError:
        raise Failed("tls_failed") from None  # another address would show no other certificate
    opened.append(writer)
    return reader


async def _addresses(receiver: Receiver) -> list[str]:
    """Return the addresses of a name, in the resolver's order. It cannot be cut off: so it has a thread of its own."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str] | None) -> None:
        if not found.done():  # else nobody waits any more
            found.set_result(addresses or [])

    def resolve() -> None:
        addresses = None
        with suppress(OSError, UnicodeError):
            known = socket.getaddrinfo(receiver.host, receiver.port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(each[4][0]) for each in known))
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, addresses)

    threading.Thread(target=resolve, name="webhook-name", daemon=True).start()
    addresses = await found
    if not addresses:
        raise Failed("name_not_found")
    return addresses


async def _head(reader: asyncio.StreamReader) -> Answer:
    for _ in range(MAX_INTERIM):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise Failed("answer_too_large") from None
        status, *lines = head.split(b"\r\n")
        if (found := _STATUS.fullmatch(status)) is None:
            raise Failed("no_http")
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
        if int(found[1]) >= _FIRST_FINAL:
            return Answer(int(found[1]), headers)
    raise Failed("no_http")


async def _rest(reader: asyncio.StreamReader, answer: Answer) -> bytes:
    """Read on for a moment, so that who writes the rest is not met by a reset; return its beginning."""
    read, wanted = b"", 0 if answer.status in WITHOUT_BODY else MAX_BYTES
    with suppress(ValueError):
        wanted = min(wanted, int(answer.headers.get(b"content-length", b"")))
    size = 0
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(BODY_SECONDS):
            while size < wanted and (chunk := await reader.read(wanted - size)):
                size += len(chunk)
                read = (read + chunk)[:SAID_BYTES]
    return read


def _retry_after(answer: Answer) -> float | None:
    header, date = answer.headers.get(b"retry-after"), answer.headers.get(b"date")
    return read_retry_after(header, date=date, now=datetime.now(UTC), cap=MAX_RETRY_AFTER)


def try_once(receiver: Receiver, request: bytes, network: Network) -> Tried:
    """Send a request from a thread without an event loop: for a command."""
    return asyncio.run(send(receiver, request, network))
