"""What `doctor` says of this program: Python, versions, and each setting in force with its source, no secret shown."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import msgspec
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from worker import shared_settings
from worker.cli.doctor.finding import Finding
from worker.environment import from_environment
from worker.inputs.addresses import parse_redis_url
from worker.settings import SECRETS, Settings
from worker.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
LIBRARIES = ("celery", "redis", "sqlalchemy", "psycopg")

Source = Literal["environment", "file", "default"]


class SettingInForce(msgspec.Struct, frozen=True):
    """One setting as it is followed; of a secret, whether it is set."""

    name: str
    value: str
    source: Source


def look_at_program(settings: Settings) -> Iterator[Finding]:
    """Say what runs here, and which settings it follows; those at their defaults are counted."""
    running = sys.version_info[:2]
    untested = not OLDEST_PYTHON <= running <= NEWEST_PYTHON
    remedy = "Use one from {}.{} to {}.{}: no other is tested.".format(*OLDEST_PYTHON, *NEWEST_PYTHON)
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", said, remedy if untested else "", passing=untested)
    yield Finding(
        "Versions", ", ".join([f"cancel-worker {__version__}", *(f"{each} {version(each)}" for each in LIBRARIES)])
    )
    found = settings_in_force(settings)
    for each in found:
        if each.source != "default":
            yield Finding("Setting", f"{each.name} {each.value} ({each.source})")
    yield Finding("Settings", f"{sum(each.source == 'default' for each in found)} others at their defaults")


def settings_in_force(settings: Settings) -> list[SettingInForce]:
    """Return every setting, in the order of their names."""
    shown = {name.upper(): _shown(name, value) for name, value in settings}
    shown |= {"CANCEL_ACTOR": shared_settings.actor(None), "FLOWER_URL": from_environment("FLOWER_URL") or "not set"}
    return [SettingInForce(name, value, source_of(name)) for name, value in sorted(shown.items())]


def source_of(name: str) -> Source:
    """Return where a setting comes from."""
    if from_environment(name) is None:
        return "default"
    return "file" if os.environ.get(f"{name}_FILE") else "environment"


def _shown(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else "not set"
    if name.upper() in SECRETS:
        return f"{len(value)} set" if isinstance(value, list) and value else "not set"
    if name == "redis_url":
        address = parse_redis_url(str(value))
        return f"{address.scheme} {address.where} database {address.options['db']}"
    if name == "database_url":
        return _place(str(value))
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _place(address: str) -> str:
    """Return where a database is, without who asks; nothing of an address that may hold a password elsewhere."""
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        return "cannot be read"
    if "@" in (url.host or ""):
        return "cannot be read"
    where = [url.host or url.query.get("host"), url.port, url.database]
    return " ".join(str(each) for each in (url.get_backend_name(), *where) if each)
