"""What the images of `ops/compose.yaml` bring, from this machine: programs, entry points, environments, and /etc.

Knows the images by their names, and where wheels and Debian keep the same programs. Starts nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.parts import part, postgres_binary
from worker.dev.embedded import find_redis_server

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PROGRAMS = "/image/bin"  # in a container: what its image brings
PATH = {"PATH": f"{PROGRAMS}:{BIN}:/usr/bin:/bin"}
USERS = {"root": 0, "postgres": 999, "cancel-worker": 10_001, "nobody": 65_534}
POSTGRES = ("postgres", "initdb", "pg_ctl", "pg_isready", "psql")


def programs(image: str) -> dict[str, str]:
    """Return what an image brings: programs by their names."""
    if image.startswith("trackstar-cancel-worker"):
        return {}  # all in the virtual environment
    if image.startswith("postgres:"):
        return {name: str(postgres_binary(name)) for name in POSTGRES} | {"image": str(HERE / "postgres_image.sh")}
    if image.startswith("redis:"):
        # One binary of Debian's, which is a server where it is called so.
        return {"redis-server": os.path.realpath(part("redis-sentinel")), "redis-cli": part("redis-cli")}
    if image.startswith("valkey/"):
        return {"valkey-server": find_redis_server(), "redis-cli": part("redis-cli")}
    return {name: part(name) for name in ("prometheus", "wget")}


# What the images say of themselves: the program, and its environment.
OUR_IMAGE = "trackstar-cancel-worker"
ENTRYPOINTS = {OUR_IMAGE: ["cancel-worker"], "postgres:16": ["image"], "prom/prometheus:v3.5.0": ["prometheus"]}
ENVIRONMENTS = {OUR_IMAGE: {"HEALTH_PORT": "8080", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}}


def etc(names: dict[str, list[str]]) -> dict[str, str]:
    """Return the files of a container's /etc that know users and names."""
    hosts = ["127.0.0.1 localhost", *(f"{each} {name}" for name, found in names.items() for each in found)]
    return {
        "/etc/hosts": "\n".join(hosts) + "\n",
        "/etc/resolv.conf": "nameserver 127.0.0.11\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "/etc/passwd": "".join(f"{name}:x:{each}:{each}::/nonexistent:/bin/sh\n" for name, each in USERS.items()),
        "/etc/group": "".join(f"{name}:x:{number}:\n" for name, number in USERS.items()),
    }
