"""`ops/compose.yaml`, read as Compose reads it: variables, secrets, mounts, networks. Starts nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parents[2] / "ops"
FILE = FOLDER / "compose.yaml"
# `$$`, `${NAME}` and `${NAME:-default}`: what the file uses of Compose's interpolation.
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")
MEGABYTES = {"K": 2**-10, "M": 1, "G": 2**10}


@dataclass(frozen=True)
class Container:
    """What Compose tells an engine about one container of a service."""

    service: str
    image: str
    user: str
    entrypoint: list[str] | None  # else the image's
    command: list[str] | None  # else the image's
    environment: dict[str, str]
    networks: list[str]
    secrets: dict[str, Path]  # by name, which is the file's below /run/secrets
    mounts: dict[str, Path]  # of files and folders of this machine, read-only, by their place in the container
    volumes: dict[str, str]  # by their place
    tmpfs: dict[str, str]  # options by their place
    memory: float  # megabytes
    pids: int
    read_only: bool = True
    no_rights: bool = True  # no capability, now or later
    stop_signal: str = "SIGTERM"
    health: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return [*(self.entrypoint or []), *(self.command or [])]


def services(environment: Mapping[str, str] = {}) -> dict[str, dict[str, Any]]:
    """Return the services with every variable written out as Compose would, in this environment."""
    found: dict[str, dict[str, Any]] = _written_out(yaml.safe_load(FILE.read_text())["services"], environment)
    return found


def container(service: str, secrets: Path, environment: Mapping[str, str] = {}) -> Container:
    """Return what a container of a service is given, with its secrets from a folder."""
    given = services(environment)[service]
    mounts = [each.split(":") for each in given.get("volumes", ())]
    limits = given["deploy"]["resources"]["limits"]
    return Container(
        service=service,
        image=given["image"],
        user=given["user"],
        entrypoint=given.get("entrypoint"),
        command=given.get("command"),
        environment=_environment(given, environment),
        networks=given["networks"],
        secrets={name: secrets / name for name in given.get("secrets", ())},
        mounts={place: FOLDER / source for source, place, *_ in mounts if source.startswith(".")},
        volumes={place: source for source, place, *_ in mounts if not source.startswith(".")},
        tmpfs=_tmpfs(given),
        memory=megabytes(limits["memory"]),
        pids=limits["pids"],
        read_only=given.get("read_only", False),
        no_rights=["ALL"] == given.get("cap_drop") and ["no-new-privileges:true"] == given.get("security_opt"),
        stop_signal=given.get("stop_signal", "SIGTERM"),
        health=_health(given.get("healthcheck", {})) or ["cancel-worker", "health"],
    )


def megabytes(size: str) -> float:
    return float(size[:-1]) * MEGABYTES[size[-1]]


def _environment(given: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Pass a name without a value on where it is set."""
    stated = given.get("environment", {})
    own = {name: value for name, value in stated.items() if value is not None}
    return own | {name: environment[name] for name, value in stated.items() if value is None and name in environment}


def _tmpfs(given: dict[str, Any]) -> dict[str, str]:
    shared = {"/dev/shm": f"mode=1777,size={given.get('shm_size', '64m')}"}  # noqa: S108 - a place in a container
    return shared | dict(each.split(":", 1) for each in given.get("tmpfs", ()))


def _health(check: dict[str, Any]) -> list[str]:
    kind, *words = map(str, check.get("test", ["NONE"]))
    return ["/bin/sh", "-c", *words] if "CMD-SHELL" == kind else words


def _written_out(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _written_out(each, environment) for name, each in value.items()}
    if isinstance(value, list):
        return [_written_out(each, environment) for each in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda found: found[1] or environment.get(found[2], found[3] or ""), value)
