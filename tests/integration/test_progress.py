"""Commands that may take long show on a person's terminal how far they are, and nothing of it to a program."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.screen import open_screen
from harness.shell import Operator
from sqlalchemy import insert, update

from worker.cancellation.request import CancelRequest
from worker.ledger import transitions
from worker.ledger.schema import cancellations, connections, dead_letters

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeDatabase
    from sqlalchemy import Engine

    from worker.ledger.vault import TokenVault

ROWS = 600  # more than one transaction holds
OLD = datetime.now(UTC) - timedelta(days=400)


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """The address of one kind only: what is shown is the same, and each test starts processes."""
    return make_database("sqlite")


@pytest.fixture
def operator(tmp_path: Path, database_url: str, redis_url: str, credential_key: str) -> Operator:
    (tmp_path / "monday.csv").write_text("order_id\n" + "".join(f"m-{n}\n" for n in range(ROWS)))
    return Operator(
        tmp_path,
        DATABASE_URL=database_url,
        REDIS_URL=redis_url,
        CREDENTIAL_KEYS=credential_key,
        TERM="xterm",
        COLUMNS="120",
    )


@pytest.fixture(autouse=True)
def much_to_do(ledger: Engine, shop: str, vault: TokenVault) -> None:
    """Put what can be replayed, encrypted anew and deleted into the ledger."""
    transitions.accept_batch(ledger, [CancelRequest(connection_id=shop, order_id=f"o-{n}") for n in range(ROWS)])
    letter = {"source": "inbox", "raw": b"x", "reason": "invalid_json", "error": "x", "received_at": OLD}
    tokens = [
        {"id": f"c-{n}", "access_token": vault.encrypt("t"), "created_at": OLD, "updated_at": OLD} for n in range(40)
    ]
    with ledger.begin() as db:
        db.execute(update(cancellations).values(status="exhausted", ended_at=OLD, verdict="unknown"))
        db.execute(insert(dead_letters), [letter] * ROWS)
        db.execute(insert(connections), tokens)


@pytest.mark.parametrize(
    ("command", "what", "reached", "end"),
    [
        ("replay --status exhausted --reason recovered", "replay", "600/600", "600 are pending again"),
        ("connections rekey --force", "tokens encrypted", "41/41", "41 tokens are encrypted"),
        ("prune", "rows deleted", "600/?", "600 dead letters are deleted"),
        ("enqueue-file monday.csv -c shop-1", "jobs enqueued", "600/600", "600 jobs are enqueued"),
    ],
)
def test_a_terminal_shows_how_far_a_command_is_and_its_output_holds_the_result_alone(
    operator: Operator, command: str, what: str, reached: str, end: str
) -> None:
    with open_screen() as screen:
        with operator.start(*command.split(), stdout=subprocess.PIPE, stderr=screen.file) as running:
            said, _ = running.communicate(timeout=60)
        shown = screen.ended()

    assert 0 == running.returncode, shown
    assert what in shown
    assert reached in shown
    assert end in said
    assert "\x1b" not in said
    assert 1 == len(said.splitlines())
