"""The pure rooms stay pure: who imports the rules, or how outside values are read, opens nothing outside."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import worker.cancellation
import worker.inputs

RULES = [
    *(f"cancellation.{module.name}" for module in pkgutil.iter_modules(worker.cancellation.__path__)),
    *(f"inputs.{module.name}" for module in pkgutil.iter_modules(worker.inputs.__path__)),
]
ALWAYS = {"worker", "worker.errors", "worker.version"}  # whatever is imported of ours
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
    rules = [
        "answer",
        "backoff",
        "celery_message",
        "chances",
        "delivery",
        "event",
        "fairness",
        "freshness",
        "job_file",
        "lifecycle",
        "listing",
        "order_proof",
        "outage",
        "outcome",
        "pace",
        "policy",
        "producer",
        "proof",
        "refund",
        "request",
        "signature",
        "standstill",
        "status",
        "stream_entry",
    ]

    assert [f"cancellation.{name}" for name in rules] == [name for name in RULES if name.startswith("cancellation.")]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_pulls_in_no_network_no_database_and_no_framework(rule: str) -> None:
    imported = imported_with(f"worker.{rule}")

    assert f"worker.{rule}" in imported
    assert set() == imported & OUTSIDE


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_knows_nothing_of_ours_outside_the_pure_rooms_but_the_errors(rule: str) -> None:
    ours = ours_imported_with(f"worker.{rule}") - ALWAYS

    assert set() == {name for name in ours if name.split(".")[1] not in {"cancellation", "inputs"}}


def test_the_errors_know_no_other_file() -> None:
    assert ALWAYS == ours_imported_with("worker.errors")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_no_clock_and_no_dice(rule: str) -> None:
    assert set() == imported_with(f"worker.{rule}") & {"random", "secrets", "threading"}
