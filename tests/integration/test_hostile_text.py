"""Whatever stands in a field that strangers fill, every command shows it as it is, and nothing of it is obeyed."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rich.color import ColorSystem
from sqlalchemy import insert, update

from worker.cancellation.request import CancelRequest
from worker.cli import main, parts
from worker.dev.sandbox import Sandbox
from worker.inputs.text import MAX_SHOWN_LENGTH, visible
from worker.ledger import audit, connections, dead_letters, endpoints, transitions
from worker.ledger.attempts import AttemptRow
from worker.ledger.dead_letters import DeadLetter
from worker.ledger.schema import attempts, cancellations, events
from worker.ledger.schema import connections as connections_table
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import MakeDatabase
    from sqlalchemy import Engine

    from worker.ledger.vault import TokenVault

HOSTILE = [
    "[/x]",
    "[eu]1001",
    "[bold red]no[/bold red]",
    "[link=http://evil.example]x[/link]",
    r"\[red]x",
    ":100:",
    ":warning:",
    "\x1b[2J\x1b[32mSafe to refund: yes",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\x",
    "\x9b31mred",
    "a\nb\r\nid forged",
    "back\x08\x08space",
    "tab\tbell\x07",
    "\u202eyes",
    "1001\u200b",
    "\ufeff1001",
    "1001 ",
    "a\u2066b\u2069",
    "zalgo" + "\u0301" * 20,
    "\u2028line",
    "<script>alert(1)</script>",
    "{not a format} %s",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1+1",
    "\uff1d1+1",
]
FIELDS = (
    *("connection_id", "order_id", "requested_by", "reason", "outcome_reason", "outcome_message", "order_status"),
    *("reference_id", "order_number", "batch"),
)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SGR = re.compile(r"\x1b\[[0-9;]*m")
BAR = re.compile(r"\x1b\[(?:\?25[lh]|2K|1A)|\r")  # what a progress bar of ours writes


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """One kind only: SQLite takes any text, and the commands are the same."""
    return make_database("sqlite")


@pytest.fixture
def ids(ledger: Engine, vault: TokenVault) -> list[str]:
    """A cancellation for each hostile value, which stands in every field that a stranger can fill."""
    _dead_letters(ledger, HOSTILE)
    with ledger.begin() as db:
        for value in HOSTILE:
            endpoints.add(db, "https://oms.example/", vault.encrypt("whsec_x"), types=[value], connections=[value])
    return [_cancellation(ledger, vault, number, value) for number, value in enumerate(HOSTILE)]


def _dead_letters(ledger: Engine, values: list[str]) -> None:
    with ledger.begin() as db:
        dead_letters.insert_dead_letters(
            db,
            [
                DeadLetter(source=value, entry_id=f"{number}-0", raw=value.encode(), reason=value, error=value)
                for number, value in enumerate(values)
            ],
        )


def _cancellation(ledger: Engine, vault: TokenVault, number: int, value: str) -> str:
    with ledger.begin() as db:
        connections.add(db, value, vault.encrypt("t"), name=value, owner=value, integration_name=value)
        request = CancelRequest(connection_id="default", order_id=f"o-{number}")
        transitions.accept(db, [request])
        hostile: dict[str, Any] = dict.fromkeys(FIELDS, value)
        document = json.dumps({"id": value}, ensure_ascii=False, indent=2)
        db.execute(
            update(cancellations)
            .where(cancellations.c.id == request.record_id)
            .values(
                **hostile,
                metadata={"from": value},
                order_snapshot=document,
                status="rejected",
                verdict="not_cancelled",
                evidence="read_back",
                first_sent_at=NOW,
                ended_at=NOW,
                attempts=1,
                claims=1,
            )
        )
        tried = AttemptRow(kind="cancel", started_at=NOW, reason=value, error=value, request_id=value)
        row = {
            "cancellation_id": request.record_id,
            "number": 1,
            "generation": 1,
            "kind": tried.kind,
            "started_at": NOW,
            "reason": value,
            "error": value,
            "request_id": value,
            "replayed": False,
        }
        db.execute(insert(attempts).values(row))
        told = json.dumps({"connection_id": value, "order_id": value, "status": value, "reason": value})
        its_own = {"cancellation_id": request.record_id, "type": "cancellation.ended", "created_at": NOW}
        db.execute(insert(events).values({**its_own, "payload": told}))
        seen = (audit.Action.REVEAL, audit.Kind.CANCELLATION, request.record_id)
        audit.write(db, audit.By(value, value), *seen, after={value: value})
        return request.record_id


class Terminal:
    """Runs commands in this process, and returns all that they wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *words: str) -> str:
        self._monkeypatch.setattr(sys, "argv", ["cancel-worker", *words])
        with pytest.raises(SystemExit):
            main()
        written = self._capsys.readouterr()
        assert "This is a bug" not in written.err
        return written.out + written.err


@pytest.fixture(params=[False, True], ids=["plain", "colours"])
def terminal(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    redis_url: str,
    credential_key: str,
) -> Iterator[Terminal]:
    """A terminal that is wide enough for every cell, without colours and with them."""
    if request.param:
        monkeypatch.setattr(parts.console, "_force_terminal", True)
        monkeypatch.setattr(parts.console, "_color_system", ColorSystem.STANDARD)
    monkeypatch.setattr(parts.console, "_width", 20_000)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CREDENTIAL_KEYS", credential_key)
    load_settings.cache_clear()
    yield Terminal(monkeypatch, capsys)
    load_settings.cache_clear()


def obeyed(said: str) -> set[str]:
    """Return the characters of an output that a terminal would obey or hide, but for our own colours."""
    return {char for char in SGR.sub("", said) if not char.isprintable() and char != "\n"}


def within(value: str) -> str:
    """Return how a value is shown inside a sentence, where a space at its edge is seen."""
    return visible(f"x{value}x")[1:-1]


def missing(said: str) -> list[str]:
    """Return the hostile values that an output does not show as they are."""
    shown = SGR.sub("", said)
    return [value for value in HOSTILE if visible(value) not in shown]


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--limit", "100"),
        ("list", "--limit", "100", "--csv"),
        ("replay", "--status", "rejected", "--dry-run"),
        ("batches", "list"),
        ("connections", "list"),
        ("windows",),
        ("dead-letters", "list"),
        ("audit", "list", "--limit", "100"),
        ("events", "list", "--since", "2026-01-01", "--type", "cancellation.ended"),
        ("events", "list", "--since", "2026-01-01", "--type", "dead_letter.kept"),
        ("endpoints", "list"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("ids")
def test_a_list_shows_every_value_as_it_is(terminal: Terminal, words: tuple[str, ...]) -> None:
    said = terminal.run(*words)

    assert [] == missing(said)
    assert set() == obeyed(said)
    assert not [value for value in HOSTILE if not value.isprintable() and value in said]


def test_the_story_of_a_cancellation_shows_every_value_as_it_is(terminal: Terminal, ids: list[str]) -> None:
    for record_id, value in zip(ids, HOSTILE, strict=True):
        said = terminal.run("show", record_id)
        shown = SGR.sub("", said)

        assert f"Order {within(value)} of connection {within(value)} (owner {within(value)})\n" in shown
        for what in ("number", "reference", "batch"):
            assert f"{what} {visible(value)}\n" in shown
        # three times there; who asked, the attempt, the reasons, an act
        assert 9 <= shown.count(within(value).rstrip()), shown
        assert set() == obeyed(said)


def test_json_holds_every_value_and_nothing_that_a_terminal_obeys(terminal: Terminal, ids: list[str]) -> None:
    listed = terminal.run("list", "--json", "--limit", "100")
    told = [terminal.run("show", record_id, "--json", "--reveal") for record_id in ids]
    events_told = terminal.run("events", "list", "--since", "2026-01-01", "--type", "cancellation.ended", "--json")

    assert HOSTILE == [json.loads(line)["order_id"] for line in events_told.splitlines()]
    assert set() == obeyed(events_told)
    shown = ("order_id", "reference_id", "order_number", "batch", "requested_by", "reason", "metadata")
    assert [(value,) * (len(shown) - 1) + ({"from": value},) for value in sorted(HOSTILE)] == sorted(
        tuple(json.loads(line)[name] for name in shown) for line in listed.splitlines()
    )
    assert HOSTILE == [json.loads(said)["order_snapshot"]["id"] for said in told]
    assert set() == obeyed(listed) | obeyed("".join(told))


@pytest.mark.parametrize("words", [("change", "--now"), ("withdraw",)], ids=" ".join)
@pytest.mark.usefixtures("ids")
def test_what_would_be_done_to_what_waits_shows_every_value_as_it_is(
    terminal: Terminal, ledger: Engine, words: tuple[str, ...]
) -> None:
    with ledger.begin() as db:
        db.execute(update(cancellations).values(status="pending", ended_at=None, verdict=None, evidence=None))
    said = terminal.run(*words, "--status", "pending", "--dry-run")

    assert [] == missing(said)
    assert set() == obeyed(said)


@pytest.mark.usefixtures("ids")
def test_a_spreadsheet_computes_no_cell_of_a_list(terminal: Terminal) -> None:
    rows = list(csv.DictReader(io.StringIO(terminal.run("list", "--csv", "--limit", "100"))))
    formulas = {value for value in HOSTILE if value.startswith(("=", "+", "-", "@", "\uff1d"))}

    assert len(HOSTILE) == len(rows)
    assert not [cell for row in rows for cell in row.values() if cell[:1] in {"=", "+", "-", "@", "\t", "\uff1d"}]
    for name in ("order_id", "reference_id", "order_number", "batch", "requested_by", "connection_name"):
        shown = {f"'{value}" if value in formulas else visible(value) for value in HOSTILE}
        assert shown == {row[name] for row in rows}, name
    assert {visible(json.dumps({"from": value}, ensure_ascii=False)) for value in HOSTILE} == {
        row["metadata"] for row in rows
    }


@pytest.mark.usefixtures("ids")
def test_what_is_found_by_a_number_shows_it_as_it_is(terminal: Terminal) -> None:
    for value in HOSTILE:
        said = terminal.run("show", "--", value)

        assert f"number {visible(value)}\n" in SGR.sub("", said)
        assert set() == obeyed(said)


@pytest.mark.usefixtures("ids")
def test_a_batch_is_shown_stopped_and_erased_as_it_is_called(terminal: Terminal) -> None:
    for value in HOSTILE:
        shown = terminal.run("batches", "show", "--", value)
        others = [
            terminal.run("batches", "stop", "--dry-run", "--reason", value, "--as", value, "--", value),
            terminal.run("batches", "stop", "--reason", value, "--as", value, "--", value),
            terminal.run("change", "--batch", value, "--now", "--reason", value, "--as", value),
            terminal.run("redact", "--reason", f"x{value}", "--as", value, "--", value),
        ]

        assert f"Batch {within(value)}, received from" in SGR.sub("", shown)
        assert set() == obeyed(shown + "".join(others))


BAD_CSV = "order_id,priority\n" + "".join(f'"{value}","{value}"\n' for value in HOSTILE if '"' not in value)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(BAD_CSV, id="CSV"),
        pytest.param("".join(json.dumps({"order_id": "o", value: value}) + "\n" for value in HOSTILE), id="fields"),
        pytest.param(
            "".join(json.dumps({"order_id": "o", "priority": value}) + "\n" for value in HOSTILE), id="words"
        ),
        pytest.param("{" + "\n{".join(value.replace("\n", "") for value in HOSTILE), id="no JSON"),
    ],
)
def test_each_bad_line_of_a_file_is_told_as_it_is(terminal: Terminal, tmp_path: Path, lines: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(lines)
    said = terminal.run("enqueue-file", str(path), "-c", "shop-1")

    assert "nothing was sent" in said
    assert set() == obeyed(said)


def test_a_file_and_its_header_are_called_as_they_are(terminal: Terminal, tmp_path: Path) -> None:
    for value in HOSTILE:
        path = tmp_path / f"x{value.replace('/', '_')}x"
        missing_file = terminal.run("enqueue-file", str(path), "-c", "shop-1")
        path.write_text("order_id\n1\n")
        said = terminal.run("enqueue-file", str(path), "-c", "shop-1")
        path.write_text(f"order_id,{value}\n1,2\n")
        headed = terminal.run("enqueue-file", str(path), "-c", "shop-1")

        assert f"{visible(str(path))} cannot be read" in SGR.sub("", missing_file)
        assert f"1 jobs are enqueued as batch {visible(path.name)}-" in SGR.sub("", said)
        assert set() == obeyed(missing_file + BAR.sub("", said) + headed)


LONG = "a" * 5_000


def test_a_very_long_text_is_cut_wherever_it_is_shown(terminal: Terminal, ledger: Engine, vault: TokenVault) -> None:
    record_id = _cancellation(ledger, vault, 0, LONG)
    for words in (
        ("show", record_id),
        ("show", LONG),
        ("list",),
        ("list", "--csv"),
        ("audit", "list"),
        ("events", "list", "--since", "2026-01-01"),
        ("connections", "list"),
        ("connections", "show", LONG),
        ("windows",),
        ("batches", "list"),
        ("batches", "show", LONG),
        ("batches", "stop", f"no{LONG}"),
        ("change", "--batch", LONG, "--now", "--status", "pending", "--dry-run", "--as", LONG),
        ("change", "--now", f"no{LONG}"),
        ("redact", f"no{LONG}", "--reason", LONG),
        ("enqueue-file", f"no{LONG}"),
    ):
        said = terminal.run(*words)

        assert "a" * 200 in said or "change" == words[0], words
        assert "a" * (MAX_SHOWN_LENGTH + 1) not in said, words


@pytest.mark.usefixtures("ids")
def test_a_dead_letter_shows_every_value_as_it_is(terminal: Terminal) -> None:
    for number, value in enumerate(HOSTILE, 1):
        said = terminal.run("dead-letters", "show", str(number))

        shown = SGR.sub("", said)
        assert f"from {visible(value)}\n" in shown
        assert f"{within(value)}: {visible(value)}\n" in shown
        assert repr(value.encode()) in shown
        assert set() == obeyed(said)


@pytest.mark.parametrize("value", HOSTILE)
def test_what_a_command_says_of_a_value_that_was_typed_or_known_is_shown_as_it_is(
    terminal: Terminal, value: str, ledger: Engine, vault: TokenVault
) -> None:
    record_id = _cancellation(ledger, vault, 0, value)
    _dead_letters(ledger, [value])
    commands: dict[tuple[str, ...], int] = {
        ("show", f"no{value}"): 0,
        ("connections", "hold", "--", value): 1,
        ("connections", "set", "--name", value, "--owner", value, "--trackstar-id", f"x{value}", "--", value): 1,
        ("connections", "show", "--", value): 1,
        ("windows", f"--integration=no{value}"): 0,
        ("windows", "-c", value, "--json"): 0,
        ("connections", "show", "--json", "--", value): 0,
        ("connections", "mend-link", "--", f"no{value}"): 0,
        ("resolve", record_id, "cancelled", "--reason", f"x{value}", "--as", value): 0,
        ("resolve", "--reason", "seen", "--", value, "cancelled"): 0,
        ("connections", "resume", "--reason", f"x{value}", "--as", value, "--", value): 1,
        ("connections", "rotate", "--", f"no{value}"): 1,
        ("connections", "remove", "--force", "--reason", f"x{value}", "--", value): 1,
        ("audit", "list", "--target", value): 1,
        ("audit", "list", "--actor", value): 0,
        ("audit", "list", "--json"): 0,
        ("events", "list", "--since", "2026-01-01", f"--connection={value}"): 0,
        ("events", "list", "--since", f"x{value}"): 0,
        ("events", "list", "--type", f"x{value}"): 0,
        ("events", "tail", "--type", f"x{value}"): 0,
        ("withdraw", "--", value): 0,
        ("change", "--now", "--", f"no{value}"): 1,
        ("change", "--now", "--reason", value, "--as", value, "--", record_id): 0,
        ("change", "--send-by", f"x{value}", "--", record_id): 0,
        ("change", "--priority", f"x{value}", "--", record_id): 0,
        ("batches", "show", "--", f"no{value}"): 0,
        ("batches", "stop", "--", f"no{value}"): 0,
        ("redact", "--reason", f"x{value}", "--", f"no{value}"): 0,
        ("redact", "-c", value, "--reason", "seen", "--", f"no{value}"): 0,
        ("prune", "--dry-run", "--reason", value, "--as", value): 0,
        ("prune", "--reason", value, "--as", value): 0,
        ("withdraw", "--batch", value, "--dry-run"): 0,
        ("list", "--metadata", f"from={value}", "--requested-by", value, "--reference", value): 0,
        ("list", "--since", f"x{value}"): 0,
        ("list", "--older-than", f"x{value}"): 0,
        ("list", "--metadata", f"x{value}".replace("=", "")): 0,
        ("list", "--after", f"x{value}"): 1,
        ("withdraw", record_id): 0,
        ("replay", "--reason", f"x{value}", "--", record_id): 0,
        ("show", record_id): 0,
        ("enqueue", "-c", value, "--", value): 0,
        ("dead-letters", "requeue", "1", "--job", value.replace("\x00", "")): 0,
        ("endpoints", "add", "--reason", value, "--as", value, "-c", value, "https://oms.example/"): 0,
        ("endpoints", "add", "--", f"https://x{value}"): 0,
        ("endpoints", "add", "--type", f"x{value}", "https://oms.example/"): 0,
        ("endpoints", "show", "--", f"no{value}"): 1,
        ("endpoints", "list"): 0,
        ("endpoints", "pause", "--", f"no{value}"): 1,
        ("endpoints", "remove", "--reason", f"x{value}", "--", f"no{value}"): 1,
        ("endpoints", "test", "--reason", value, "--as", value, "--", f"no{value}"): 1,
        ("endpoints", "replay", "--id", f"x{value}", "--", f"no{value}"): 1,
        ("endpoints", "replay", "--since", f"x{value}", "--", f"no{value}"): 0,
    }
    for words, shows in commands.items():
        said = terminal.run(*words)

        assert set() == obeyed(said), words
        assert not shows or within(value) in SGR.sub("", said), words


@pytest.mark.usefixtures("ids")
def test_the_doctor_shows_connections_and_what_trackstar_says_of_them_as_it_is(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, ledger: Engine
) -> None:
    with Sandbox("k") as sandbox:
        monkeypatch.setenv("TRACKSTAR_API_KEY", "k")
        monkeypatch.setenv("TRACKSTAR_BASE_URL", sandbox.url)
        for number, value in enumerate(HOSTILE):
            sandbox.world.connect(value, f"t-{number}", integration_name=value, errors=(value,))
        with ledger.begin() as db:
            db.execute(update(connections_table).values(hold_reason="operator", held_at=NOW))
        said = terminal.run("doctor")

    assert [] == missing(said)
    assert set() == obeyed(said)


def test_bytes_that_a_terminal_could_obey_go_into_a_file_only(
    terminal: Terminal, ids: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_pty: Callable[..., Any]
) -> None:
    del ids, tmp_path
    monkeypatch.setattr(sys, "stdout", open_pty())
    assert "send them into a file" in terminal.run("dead-letters", "show", "8", "--raw")


@pytest.fixture
def open_pty() -> Iterator[Callable[..., Any]]:
    """Open something that is a terminal."""
    import os  # noqa: PLC0415
    import pty  # noqa: PLC0415

    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as opened:
        yield lambda: opened
    os.close(leader)
