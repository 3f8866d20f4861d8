"""A tunnel through a proxy to an address that was checked here: the proxy is not asked for the name."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl

MAX_HEAD = 64 * 1024


class ProxyError(OSError):
    """The proxy opens no tunnel."""


async def tunnel_through(
    proxy: str,
    address: str,
    port: int,
    trusted: ssl.SSLContext,
    tls: dict[str, Any],
    opened: list[asyncio.StreamWriter],
) -> asyncio.StreamReader:
    """Open a tunnel, with TLS inside it where `tls` says so; raises OSError where the proxy does not open it."""
    url = urlsplit(proxy)
    own: dict[str, Any] = {"ssl": trusted} if url.scheme == "https" else {}
    default = 443 if own else 80
    reader, writer = await asyncio.open_connection(url.hostname, url.port or default, limit=MAX_HEAD, **own)
    opened.append(writer)
    writer.write(
        _question(url.username, url.password, f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
    )
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        raise ProxyError("no answer to CONNECT") from None
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise ProxyError("no tunnel")
    if tls:
        await writer.start_tls(tls["ssl"], server_hostname=tls["server_hostname"])
    return reader


def _question(user: str | None, password: str | None, target: str) -> bytes:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if user is not None:
        word = b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {word}")
    return "\r\n".join([*lines, "", ""]).encode()
