"""The units of systemd agree with the settings, hold no secret, and give the least that a worker needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.settings import LEASE_MARGIN_SECONDS, Settings

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "ops" / "systemd").glob("*.service"))
PAGE = (ROOT / "docs" / "one-machine.md").read_text()
OF_FLOWER = {"FLOWER_ADDRESS", "FLOWER_PORT", "FLOWER_BASIC_AUTH"}
SETTINGS = {name.upper() for name in Settings.model_fields} | OF_FLOWER
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|AUTH|_URL|DSN")


def words(unit: Path, name: str) -> list[str]:
    """Return what a unit says under a name, line by line."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def environment(unit: Path) -> dict[str, str]:
    return dict(each.split("=", 1) for line in words(unit, "Environment") for each in line.split())


@pytest.fixture
def worker() -> Path:
    return ROOT / "ops" / "systemd" / "cancel-worker@.service"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_each_variable_of_a_unit_is_a_setting_and_no_secret(unit: Path) -> None:
    for name, value in environment(unit).items():
        assert name.removesuffix("_FILE") in SETTINGS
        assert name.endswith("_FILE") or not SECRET.search(name)
        assert not name.endswith("_FILE") or value.startswith("%d/")


def test_the_page_names_files_of_settings_and_says_what_each_holds() -> None:
    named = dict(re.findall(r"^    (\w+)_FILE=/etc/cancel-worker/([\w-]+)$", PAGE, re.MULTILINE))

    assert {"REDIS_URL", "DATABASE_URL", "TRACKSTAR_API_KEY", "CREDENTIAL_KEYS"} == set(named)
    assert set(named) <= SETTINGS
    assert [] == [file for file in named.values() if f"| `{file}` |" not in PAGE]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_as_nobody_in_particular_and_writes_nowhere_else(unit: Path) -> None:
    text = unit.read_text()

    assert ["true"] == words(unit, "DynamicUser") or ["cancel-worker"] == words(unit, "User")
    assert ["true"] == words(unit, "DynamicUser") or "ProtectSystem=strict\n" in text
    assert ["true"] == words(unit, "DynamicUser") or "NoNewPrivileges=true\n" in text
    assert "CapabilityBoundingSet=\n" in text
    assert ["/opt/cancel-worker/bin/"] == [line[:23] for line in words(unit, "ExecStart")]


def test_a_worker_that_is_told_to_stop_has_time_to_finish_and_to_record(worker: Path) -> None:
    defaults = {
        name: Settings.model_fields[name].default for name in ("connect_timeout_seconds", "request_timeout_seconds")
    }
    (limit,) = words(worker, "TimeoutStopSec")

    assert 2 * sum(defaults.values()) + LEASE_MARGIN_SECONDS < float(limit.removesuffix("s"))


def test_two_workers_of_one_machine_differ_in_name_and_port(worker: Path) -> None:
    (command,) = words(worker, "ExecStart")

    assert "--name=worker-%i@%%h" in command
    assert environment(worker)["HEALTH_PORT"].endswith("%i")
    assert "127.0.0.1" == environment(worker)["HEALTH_ADDRESS"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_page_installs_each_unit_and_names_it(unit: Path) -> None:
    assert f"../ops/systemd/{unit.name}" in PAGE
    assert "install -m 644 ops/systemd/*.service /etc/systemd/system/" in PAGE
