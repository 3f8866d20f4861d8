"""The sandbox behind TLS, as a process of its own: `python trackstar_outside.py PORT API_KEY TOKEN SERVER.pem`."""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress

from worker.dev.sandbox import Sandbox


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def serve(port: int, inner: int, context: ssl.SSLContext) -> None:
    """Pass on what comes by TLS to a port of this machine."""

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", inner)
        await asyncio.gather(_copy(reader, to_server[1]), _copy(to_server[0], writer))

    server = await asyncio.start_server(passed_on, "0.0.0.0", port, ssl=context)  # noqa: S104 - in a network of its own
    print("listens", flush=True)  # noqa: T201 - for whoever has started it
    await server.serve_forever()


def main(port: str, api_key: str, token: str, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Sandbox(api_key, unknown_orders="open", sync_schedules=False) as sandbox:
        sandbox.world.connect("shop-1", access_token=token)
        asyncio.run(serve(int(port), int(sandbox.url.rpartition(":")[2]), context))


if __name__ == "__main__":
    main(*sys.argv[1:])
