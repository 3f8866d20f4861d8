"""The pure room stays pure: whoever imports the rules opens no door to the outside."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import worker.cancellation

RULES = sorted(module.name for module in pkgutil.iter_modules(worker.cancellation.__path__))
OUTSIDE = {
    "_socket", "_sqlite3", "_ssl", "alembic", "asyncio", "celery", "http.client", "kombu", "psycopg", "redis",
    "requests", "sentry_sdk", "socket", "sqlalchemy", "sqlite3", "ssl", "structlog", "tornado", "typer", "urllib3",
}  # fmt: skip


def imported_with(module: str) -> set[str]:
    # Compared with msgspec alone: what our one dependency loads for itself is not our import.
    code = (
        "import sys, json, msgspec.json; before = set(sys.modules); "
        f"import {module}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def ours_imported_with(module: str) -> set[str]:
    return {name for name in imported_with(module) if name.split(".")[0] == "worker"}


def test_the_room_holds_these_rules_and_no_other_file() -> None:
    rules = ["answer", "backoff", "celery_message", "fairness", "lifecycle", "outage", "outcome", "pace", "request"]

    assert RULES == rules


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_pulls_in_no_network_no_database_and_no_framework(rule: str) -> None:
    imported = imported_with(f"worker.cancellation.{rule}")

    assert f"worker.cancellation.{rule}" in imported
    assert set() == imported & OUTSIDE


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_knows_nothing_of_ours_outside_the_room_but_the_errors(rule: str) -> None:
    ours = {name for name in ours_imported_with(f"worker.cancellation.{rule}") if "cancellation." not in name}

    assert {"worker", "worker.cancellation"} == ours - {"worker.errors"}


def test_the_errors_know_no_other_file() -> None:
    assert {"worker", "worker.errors"} == ours_imported_with("worker.errors")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_no_clock_and_no_dice(rule: str) -> None:
    assert set() == imported_with(f"worker.cancellation.{rule}") & {"random", "secrets", "threading"}
