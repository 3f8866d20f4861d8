"""No command and no client changes the ledger for a person without a row of the audit; and how an act is told."""

from __future__ import annotations

import ast
import inspect
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import worker
from worker.cli import app
from worker.cli.audit import changes
from worker.ledger.audit import Act, acting

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(worker.__file__).parent
PEOPLES = [*sorted((FOLDER / "cli").rglob("*.py")), FOLDER / "client.py"]
# A read is asked for, and believed or not; the doctor tries whether it may write, and changes no row.
NO_ACT = {"client.look_again", "ledger._rights"}


def transactions() -> Iterator[tuple[str, ast.With]]:
    """Return each block that may commit, by the function in which it stands."""
    for path in PEOPLES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for block in ast.walk(function):
                    if isinstance(block, ast.With) and any(
                        begins in ast.unparse(item) for item in block.items for begins in (".begin()", "recorded(")
                    ):
                        yield f"{path.stem}.{function.name}", block


def test_whatever_a_person_changes_is_in_one_transaction_with_its_act() -> None:
    found = list(transactions())
    silent = {
        name
        for name, block in found
        if not any(f"{writes}(" in ast.unparse(block) for writes in ("recorded", "audit.write", "_write"))
    }

    acting = {"connections.add", "connections.set_", "rekey.rekey", "connections.hold", "connections.remove"}
    acting |= {"chosen.in_parts", "repair.resolve", "dead_letters.requeue", "orders.show", "forget.redact"}
    assert acting <= {name for name, _ in found}
    assert NO_ACT == silent


def test_every_command_that_acts_takes_who_and_why() -> None:
    groups = [app, *(each.typer_instance for each in app.registered_groups if each.typer_instance)]
    commands = [found.callback for group in groups for found in group.registered_commands]
    takes = {
        f"{each.__module__.rpartition('.')[2]}.{each.__name__}": set(inspect.signature(each).parameters)
        for each in commands
        if each
    }
    acts = {name for name, _ in transactions() if name in takes}
    acts |= {"repair.withdraw", "repair.replay", "changes.change", "batches.stop", "forget.prune"}

    assert set() == {name for name in acts if not {"who", "reason"} <= takes[name]}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, None, ""),
        (
            {"status": "pending", "generation": 1},
            {"status": "withdrawn", "generation": 1},
            "status: pending → withdrawn",
        ),
        ({"held": None}, {"held": "operator"}, "held: none → operator"),
        ({"held": "operator"}, {"held": None}, "held: operator → none"),
        (None, {"name": "One", "held": None}, "name: One"),
        ({"name": "One"}, None, "name: One → none"),
    ],
)
def test_an_act_is_told_by_what_it_changed(before: Any, after: Any, said: str) -> None:
    named = {"id": 1, "at": datetime.now(UTC), "actor": "Bea", "action": "x", "target_kind": "x", "target_id": None}

    assert said == changes(Act(**named, reason=None, before=before, after=after))


@pytest.mark.parametrize("blank", [None, "", "  ", "\n", "\u200b", "\x1b"])
def test_a_reason_that_nobody_sees_is_none(blank: str | None) -> None:
    assert acting("Bea", blank).reason is None
