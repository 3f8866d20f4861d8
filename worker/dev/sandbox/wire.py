"""How an answer goes out, or does not: the faults of a network. Knows bytes and streams, and no order.

Each delivery reports the end *before* its last byte leaves: whoever has the answer also finds it in the truth.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

from worker.dev.sandbox import replies
from worker.dev.sandbox.replies import Reply
from worker.dev.sandbox.script import Step

# Deliveries that break the connection; any other answer goes out whole, and the connection stays open.
BROKEN = frozenset({"reset", "close", "hang", "cut", "drip", "drip_head"})
# Deliveries that say more than the answer, and keep the connection.
NOISY = frozenset({"interim", "trailed"})
# With this linger a close sends RST instead of FIN.
ABORT = struct.pack("ii", 1, 0)


class Ended(Protocol):
    def __call__(self, end: str, status: int | None = None, /) -> None: ...


def send(connection: HTTP1Connection, reply: Reply, request_id: str, ended: Ended) -> None:
    """Send a whole answer at once and keep the connection."""
    if closed(connection):
        ended("client_gone")
        return
    ended("answered", reply.status)
    connection.write(reply.wire(request_id))
    connection.finish()


async def send_with_more(connection: HTTP1Connection, step: Step, reply: Reply, request_id: str, ended: Ended) -> None:
    """Send a whole answer, and before or behind it what nobody asked for."""
    stream = connection.stream
    if step.answer == "interim":
        await stream.write(f"HTTP/1.1 {step.status} Interim\r\nLink: </style.css>\r\n\r\n".encode())
        await asyncio.sleep(step.seconds)
    send(connection, reply, request_id, ended)
    if step.answer == "trailed":
        await asyncio.sleep(step.seconds)
        await stream.write(replies.error(404, "Nobody asked for this.").wire(request_id))


async def send_broken(
    connection: HTTP1Connection,
    step: Step,
    reply: Reply,
    request_id: str,
    *,
    ended: Ended,
    gone: Callable[[], None],
) -> None:
    if step.answer == "hang":
        await asyncio.sleep(step.seconds)
    if closed(connection):
        ended("client_gone")
        return
    stream = connection.detach()
    stream.set_close_callback(gone)
    with contextlib.closing(stream):
        match step.answer:
            case "reset":
                ended("reset")
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            case "close" | "hang":
                ended("hung" if step.answer == "hang" else "closed")
            case "cut":
                ended("cut")
                await stream.write(reply.head(request_id, "Connection: close") + reply.body[: len(reply.body) // 2])
            case _:
                await _drip(stream, step, reply, request_id, ended)


def closed(connection: HTTP1Connection) -> bool:
    # A detached connection has no stream, whatever the annotation says.
    return connection.stream is None or connection.stream.closed()


def hung_up(stream: IOStream) -> bool:
    """Tell whether the client has closed, even if the event loop has not come to hear of it yet."""
    if stream.closed():
        return True
    try:
        return stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


async def _drip(stream: IOStream, step: Step, reply: Reply, request_id: str, ended: Ended) -> None:
    head = reply.head(request_id, "Connection: close")
    if step.answer == "drip":
        await stream.write(head)
    drops = reply.body if step.answer == "drip" else head + reply.body
    for position in range(len(drops)):
        await asyncio.sleep(step.seconds)
        if position == len(drops) - 1:
            ended("answered", reply.status)
        await stream.write(drops[position : position + 1])
