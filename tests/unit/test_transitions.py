"""Every write of a status is declared from → to, is legal, and stands in one file; the table holds nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import worker
from worker.cancellation.lifecycle import Transition
from worker.cancellation.status import TRANSITIONS, Status
from worker.ledger import transitions
from worker.ledger.claims import Lease
from worker.ledger.transitions import WRITES

PACKAGE = Path(inspect.getfile(worker)).parent
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ONE_FILE = "ledger/transitions.py"
AFTER_THE_END = "ledger/confirmations.py"
LOOKED_AT_AGAIN = "ledger/rereads.py"

ALLOWED = {(source, target) for source, targets in TRANSITIONS.items() for target in targets}
LEASE = Lease("00000000-0000-5000-8000-000000000001", "me", 1)
INSERTED = "accept"  # from nothing to pending: the one write that has no status before it


def calls_in(tree: ast.AST, name: str) -> list[ast.Call]:
    """Return the calls of a function or a method of this name."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == name]


def table_of(call: ast.Call) -> str | None:
    """Return which table a `.values()` writes; None where the call does not say it."""
    begun = [each for name in ("insert", "update") for each in calls_in(call.func, name)]
    named = [given.id for each in begun for given in each.args if isinstance(given, ast.Name)]
    return named[-1] if named else None


def written_columns(tree: ast.AST) -> list[tuple[str, str]]:
    """Return each column that `.values()` writes of a cancellation, and what it writes, as both are written."""
    calls = [call for call in calls_in(tree, "values") if table_of(call) in {"cancellations", None}]
    named = [(repr(word.arg), word.value) for call in calls for word in call.keywords if word.arg]
    in_dicts = [
        (ast.unparse(key), value)
        for call in calls
        for given in [*call.args, *(word.value for word in call.keywords if word.arg is None)]
        if isinstance(given, ast.Dict)
        for key, value in zip(given.keys, given.values, strict=True)
        if key is not None
    ]
    return [(column, ast.unparse(value)) for column, value in [*named, *in_dicts]]


def written_statuses(tree: ast.AST) -> list[str]:
    """Return what each `.values(status=...)` writes into a cancellation, as it is written."""
    return [value for column, value in written_columns(tree) if column == "'status'"]


# ---- the declarations and the table


@pytest.mark.parametrize("name", sorted(WRITES))
def test_every_declared_write_is_legal(name: str) -> None:
    assert set() == WRITES[name] - ALLOWED


def test_every_legal_transition_is_written_by_somebody() -> None:
    assert ALLOWED == set().union(*WRITES.values())


def test_a_write_that_is_not_legal_cannot_be_declared() -> None:
    def reopen() -> None: ...

    with pytest.raises(ValueError, match="in_flight does not lead to"):
        transitions._writes(frm={Status.IN_FLIGHT}, to={Status.PENDING, Status.WITHDRAWN})(reopen)

    assert "reopen" not in WRITES


def test_only_a_claim_leads_to_a_request() -> None:
    assert {"claim_next"} == {name for name, pairs in WRITES.items() if Status.IN_FLIGHT in {to for _, to in pairs}}


@pytest.mark.parametrize(
    ("write", "status"),
    [
        pytest.param(transitions.apply_claimed, Status.WITHDRAWN, id="what is in flight is not withdrawn"),
        pytest.param(transitions.apply_claimed, Status.IN_FLIGHT, id="nor claimed again"),
        pytest.param(transitions.end_unsent, Status.SUCCEEDED, id="what is unsent does not succeed"),
        pytest.param(transitions.end_unsent, Status.WAITING, id="nor does its end leave it waiting"),
    ],
)
def test_what_a_write_is_handed_must_be_among_what_it_declares(write: Any, status: Status) -> None:
    wrong = Transition(status=status, attempts=0, reason="a bug")

    with pytest.raises(ValueError, match=f"{write.__name__} does not lead to .*{status}"):
        write(None, [(LEASE, wrong)])  # before it asks the database for anything


# ---- the source: no write is undeclared


def test_no_other_file_writes_a_status() -> None:
    assert {ONE_FILE} == {file for file, tree in TREES.items() if written_statuses(tree)}


def test_what_is_known_of_an_ended_cancellation_changes_in_a_file_that_writes_no_status() -> None:
    columns = {column for column, _ in written_columns(TREES[AFTER_THE_END])}

    assert {"'verdict'", "'known_by'", "'needs_person'"} < columns
    assert set() == {each for each in columns if each[0] != "'"}  # none is chosen while it runs


def test_what_is_looked_at_again_is_chosen_in_a_file_that_writes_only_when() -> None:
    columns = {column for column, _ in written_columns(TREES[LOOKED_AT_AGAIN])}
    chosen = {ast.unparse(call.args[1]) for call in calls_in(TREES[LOOKED_AT_AGAIN], "_bring_forward")}

    # The one column that is chosen while it runs is one of two.
    assert ({"when.name", "'confirm_at'"}, {"c.confirm_at", "c.run_at"}) == (columns, chosen)


def test_no_other_file_inserts_a_cancellation() -> None:
    inserting = {
        file
        for file, tree in TREES.items()
        for call in calls_in(tree, "insert")
        if "cancellations" in {getattr(given, "id", None) for given in call.args}
    }

    assert {ONE_FILE} == inserting


def test_no_file_writes_cancellations_in_sql_of_its_own() -> None:
    statement = re.compile(r"\b(update|insert\s+into|replace\s+into)\s+\"?cancellations\b", re.IGNORECASE)

    assert [] == [
        (file, node.lineno)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and statement.search(node.value)
    ]


def definitions() -> dict[str, ast.AST]:
    """Return everything that the one file defines, by its name."""
    found: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(TREES[ONE_FILE]):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        if isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def written_through(name: str) -> set[str]:
    """Return the statuses that a function writes itself, or through what is not declared to write one."""
    known, seen, waiting = definitions(), set[str](), [name]
    written: set[str] = set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        written.update(written_statuses(known[current]))
        used = {node.id for node in ast.walk(known[current]) if isinstance(node, ast.Name)}
        waiting += (used & known.keys()) - seen - WRITES.keys()
    return written


def test_whoever_writes_a_status_is_declared() -> None:
    public = {name for name, node in definitions().items() if isinstance(node, ast.FunctionDef) and name[0] != "_"}

    assert set() == {name for name in public - WRITES.keys() if written_through(name)}


@pytest.mark.parametrize("name", sorted(WRITES.keys() - {INSERTED}))
def test_what_is_declared_is_what_the_statement_writes(name: str) -> None:
    targets = {target for _, target in WRITES[name]}
    (written,) = written_through(name)

    if written == "source.c.status":  # as it was decided, by rules that `lifecycle` holds
        assert len(targets) > 1
    else:
        assert [f"S.{target.name}.value" for target in targets] == [written]
