"""A DNS server as an engine gives it to each container: `python names.py NAMES`.

Knows the names it is given, and answers A queries only.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from ipaddress import IPv4Address

ADDRESS = ("127.0.0.11", 53)
A, IN = 1, 1
NO_SUCH_NAME = 3


def answer(query: bytes, names: dict[str, list[str]]) -> bytes:
    """Return the answer to one query, which has one question."""
    name, end = _name(query, 12)
    (kind,) = struct.unpack_from(">H", query, end)
    found = names.get(name)
    addresses = found if found and kind == A else []
    flags = 0x8580 | (0 if found else NO_SUCH_NAME)
    head = struct.pack(">2sHHHHH", query[:2], flags, 1, len(addresses), 0, 0)
    records = b"".join(struct.pack(">HHHIH4s", 0xC00C, A, IN, 1, 4, IPv4Address(each).packed) for each in addresses)
    return head + query[12 : end + 4] + records


def _name(query: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels).lower(), at + 1


def main(names: dict[str, list[str]]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(ADDRESS)
        print("listens", flush=True)  # noqa: T201 - for whoever has started it
        while True:
            query, client = server.recvfrom(512)
            server.sendto(answer(query, names), client)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
