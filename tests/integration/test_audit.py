"""Each act of a person leaves one row, in its own transaction, that names who, what and why, and holds no secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from harness.commands import with_lines
from sqlalchemy import event, select, text, update

from worker import CancelClient
from worker.cancellation.request import CancelRequest
from worker.cli import parts
from worker.ledger import audit, connections, dead_letters, holds, transitions
from worker.ledger.audit import Action, By, Kind
from worker.ledger.database import read_only
from worker.ledger.schema import audit as table
from worker.ledger.schema import cancellations
from worker.ledger.schema import connections as connections_table
from worker.settings import load_settings
from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from worker.ledger.vault import TokenVault

c = cancellations.c
PASSWORD = "pass-word-of-redis"
TOKEN, NEW_TOKEN = "token-of-shop-1", "new-token-typed-by-a-person"
PERSONAL = "Ann Customer, 1 Long Road"
WHY = ("--reason", "asked by phone", "--as", "Bea")
DONE = {"actor": "Bea", "reason": "asked by phone"}
Run = tuple[int, str]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    redis_url: str,
    credential_key: str,
) -> Iterator[Callable[..., Run]]:
    """Run a command in this process, without a terminal; return its exit code and what it said."""
    monkeypatch.setattr(parts.console, "_width", 500)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CREDENTIAL_KEYS", f"{Fernet.generate_key().decode()},{credential_key}")
    monkeypatch.delenv("CANCEL_ACTOR", raising=False)
    load_settings.cache_clear()

    yield with_lines(monkeypatch, capsys, f"{NEW_TOKEN}\n")
    load_settings.cache_clear()


def accept(ledger: Engine, order_id: str) -> str:
    request = CancelRequest(connection_id="shop-1", order_id=order_id, requested_by=PERSONAL, reason=PERSONAL)
    transitions.accept_batch(ledger, [request])
    return request.record_id


@pytest.fixture
def waits(ledger: Engine, shop: str) -> str:
    del shop
    return accept(ledger, "o-1")


@pytest.fixture
def refused(ledger: Engine, shop: str) -> str:
    del shop
    return ended(ledger, accept(ledger, "o-2"), "rejected", "not_cancelled")


@pytest.fixture
def unproven(ledger: Engine, shop: str) -> str:
    del shop
    return ended(ledger, accept(ledger, "o-3"), "succeeded", "accepted")


def ended(ledger: Engine, record_id: str, status: str, verdict: str) -> str:
    known = {"status": status, "verdict": verdict, "evidence": "response", "ended_at": datetime.now(UTC)}
    document = json.dumps({"ship_to": PERSONAL})
    with ledger.begin() as db:
        said = {"order_snapshot": document, "outcome_message": PERSONAL, "metadata": {"name": PERSONAL}}
        db.execute(update(cancellations).where(c.id == record_id).values(**known, **said))
    return record_id


@pytest.fixture
def letter(ledger: Engine) -> str:
    job = json.dumps({"connection_id": "shop-1", "order_id": "o-9", "requested_by": PERSONAL}).encode()
    kept = dead_letters.DeadLetter(source=INBOX, entry_id="1-1", raw=job, reason="key_conflict", error=PERSONAL)
    with ledger.begin() as db:
        dead_letters.insert_dead_letters(db, [kept])
        return str(dead_letters.find(db)[0].id)


def acts(ledger: Engine) -> list[audit.Act]:
    with read_only(ledger) as db:
        return audit.find(db)


def act_of(ledger: Engine) -> dict[str, Any]:
    """Return the only act there is, without its number and time."""
    (act,) = acts(ledger)
    assert timedelta(seconds=-5) < datetime.now(UTC) - act.at < timedelta(minutes=10)
    return {name: getattr(act, name) for name in act.__struct_fields__ if name not in {"id", "at"}}


# -- one row for each act

ACTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    # the command ({...}: an id), and what its row says beside who and why
    "add": (
        ("connections", "add", "shop-2", "--name", "Two"),
        {"action": "add", "target_kind": "connection", "target_id": "shop-2"},
    ),
    "add again": (("connections", "add", "shop-1"), {"action": "add", "target_id": "shop-1"}),
    "set": (("connections", "set", "shop-1", "--name", "One"), {"action": "set", "target_id": "shop-1"}),
    "rotate": (("connections", "rotate", "shop-1"), {"action": "rotate", "target_id": "shop-1"}),
    "hold": (("connections", "hold", "shop-1"), {"action": "hold", "target_id": "shop-1"}),
    "resume": (("connections", "resume", "shop-1"), {"action": "resume", "target_id": "shop-1"}),
    "remove": (("connections", "remove", "shop-1", "--force"), {"action": "remove", "target_id": "shop-1"}),
    "rekey": (
        ("connections", "rekey", "--force"),
        {"action": "rekey", "target_kind": "connection", "target_id": None, "after": {"tokens": 1}},
    ),
    "withdraw": (
        ("withdraw", "{waits}"),
        {"action": "withdraw", "target_kind": "cancellation", "target_id": "{waits}"},
    ),
    "replay": (
        ("replay", "{refused}"),
        {"action": "replay", "target_kind": "cancellation", "target_id": "{refused}"},
    ),
    "resolve": (
        ("resolve", "{unproven}", "cancelled"),
        {"action": "resolve", "target_kind": "cancellation", "target_id": "{unproven}"},
    ),
    "requeue": (
        ("dead-letters", "requeue", "{letter}"),
        {"action": "requeue", "target_kind": "dead_letter", "target_id": "{letter}"},
    ),
}
CHANGED = {
    # what differs between before and after
    "add": {"name": "Two"},
    "set": {"name": "One"},
    "hold": {"hold_reason": "operator"},
    "resume": {"hold_reason": None, "held_at": None},
    "remove": {"hold_reason": "unknown_connection", "token": None},
    "withdraw": {"status": "withdrawn", "verdict": "not_cancelled", "evidence": "never_sent"},
    "replay": {"status": "pending", "generation": 2, "evidence": None, "verdict": None},
    "resolve": {"verdict": "cancelled", "evidence": "person"},
}


@pytest.fixture
def ids(waits: str, refused: str, unproven: str, letter: str) -> dict[str, str]:
    return {"waits": waits, "refused": refused, "unproven": unproven, "letter": letter}


def prepared(ledger: Engine, name: str) -> None:
    if name == "resume":
        with ledger.begin() as db:
            holds.hold_by_operator(db, "shop-1")


@pytest.mark.parametrize("name", ACTS)
def test_an_act_leaves_one_row_that_says_who_what_and_why(
    run: Callable[..., Run], ledger: Engine, ids: dict[str, str], name: str
) -> None:
    words, expected = ACTS[name]
    prepared(ledger, name)
    code, said = run(*(word.format_map(ids) for word in words), *WHY)
    act = act_of(ledger)

    assert 0 == code, said
    wanted = {key: value.format_map(ids) if isinstance(value, str) else value for key, value in expected.items()}
    assert DONE | wanted == {key: act[key] for key in DONE | wanted}
    before, after = act["before"] or {}, act["after"]
    differ = {key: after[key] for key in after if after[key] != before.get(key)}
    assert CHANGED.get(name, {}).items() <= differ.items()
    assert {} != differ


def test_a_requeue_names_the_cancellation_that_it_made(run: Callable[..., Run], ledger: Engine, letter: str) -> None:
    run("dead-letters", "requeue", letter)

    made = CancelRequest(connection_id="shop-1", order_id="o-9").record_id
    assert made == act_of(ledger)["after"]["cancellation_id"]


def test_a_client_acts_for_whom_it_was_made(ledger: Engine, database_url: str, waits: str) -> None:
    client = CancelClient(database_url=database_url, actor="the OMS")
    client.withdraw(waits, reason="the customer kept it")
    client.close()

    act = act_of(ledger)
    assert ("the OMS", "withdraw", waits, "the customer kept it") == tuple(
        act[name] for name in ("actor", "action", "target_id", "reason")
    )


def test_a_replay_of_many_leaves_a_row_for_each_that_was_replayed(
    run: Callable[..., Run], ledger: Engine, refused: str, waits: str
) -> None:
    other = ended(ledger, accept(ledger, "o-4"), "exhausted", "unknown")
    run("replay", "-c", "shop-1", *WHY)

    assert {refused, other} == {act.target_id for act in acts(ledger)}
    assert waits not in {act.target_id for act in acts(ledger)}


# -- in the transaction of the act


class NotNowError(Exception):
    """Raised where a transaction is about to be committed."""


@pytest.mark.parametrize("name", ACTS)
def test_an_act_that_is_rolled_back_leaves_no_row(
    run: Callable[..., Run], ledger: Engine, ids: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(ledger, name)
    before = everything(ledger)
    words = [word.format_map(ids) for word in ACTS[name][0]]

    def refuse_the_commit(opened: Engine) -> None:
        @event.listens_for(opened, "commit")
        def _refuse(_db: Any) -> None:
            raise NotNowError

    open_ledger = parts.open_ledger

    def opened(*arguments: Any, **options: Any) -> Engine:
        engine = open_ledger(*arguments, **options)
        refuse_the_commit(engine)
        return engine

    for module in ("worker.cli.parts", "worker.client"):
        monkeypatch.setattr(f"{module}.open_ledger", opened)
    assert 1 == run(*words, *WHY)[0]
    assert [] == acts(ledger)
    assert before == everything(ledger)


def everything(ledger: Engine) -> list[Any]:
    """Return what acts change, but for the inbox."""
    with read_only(ledger) as db:
        one = select(c.id, c.status, c.generation, c.verdict).order_by(c.id)
        return [
            *db.execute(one),
            *db.execute(select(connections_table).order_by(connections_table.c.id)),
            *(each.requeued_at for each in dead_letters.find(db, requeued=True)),
        ]


@pytest.mark.parametrize("name", ACTS)
def test_what_cannot_be_written_down_is_not_done(
    run: Callable[..., Run], ledger: Engine, ids: dict[str, str], name: str
) -> None:
    prepared(ledger, name)
    with ledger.begin() as db:
        db.execute(text("DROP TABLE audit"))
    before = everything(ledger)

    assert 3 == run(*(word.format_map(ids) for word in ACTS[name][0]), *WHY)[0]
    assert before == everything(ledger)


def test_what_changes_nothing_or_is_refused_leaves_no_row(
    run: Callable[..., Run], ledger: Engine, waits: str, refused: str
) -> None:
    assert 0 == run("connections", "resume", "shop-1", *WHY)[0]  # it was not held
    assert 1 == run("replay", waits, *WHY)[0]
    assert 1 == run("withdraw", refused, *WHY)[0]
    assert 2 == run("connections", "hold", "shop-9", *WHY)[0]
    assert 0 == run("replay", refused, "--dry-run")[0]
    assert [] == acts(ledger)


# -- who, and why


@pytest.mark.parametrize("name", ["resume", "remove", "replay", "resolve"])
@pytest.mark.parametrize(
    "reason", [(), ("--reason", " "), ("--reason", "\u200b\x1b")], ids=["none", "blank", "unseen"]
)
def test_what_needs_a_reason_is_not_done_without_one(
    run: Callable[..., Run], ledger: Engine, ids: dict[str, str], name: str, reason: tuple[str, ...]
) -> None:
    prepared(ledger, name)
    before = everything(ledger)
    code, said = run(*(word.format_map(ids) for word in ACTS[name][0]), *reason)

    assert (2, True) == (code, "--reason" in said)
    assert before == everything(ledger)
    assert [] == acts(ledger)


def test_who_acts_is_whoever_was_named_or_is_set_or_runs_the_command(
    run: Callable[..., Run], ledger: Engine, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "cara")
    monkeypatch.setattr("socket.gethostname", lambda: "machine-1")
    run("connections", "hold", shop)
    monkeypatch.setenv("CANCEL_ACTOR", "cron of the night")
    run("connections", "hold", shop)
    run("connections", "hold", shop, "--as", "Bea")
    run("connections", "hold", shop, "--as", " ")

    assert ["cron of the night", "Bea", "cron of the night", "cara@machine-1"] == [act.actor for act in acts(ledger)]


def test_a_user_without_a_name_acts_by_its_number(
    run: Callable[..., Run], ledger: Engine, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 10001)
    run("connections", "hold", shop)

    assert acts(ledger)[0].actor.startswith("uid 10001@")


def test_what_was_typed_is_bounded_and_obeyed_by_no_terminal(
    run: Callable[..., Run], ledger: Engine, shop: str
) -> None:
    run("connections", "hold", shop, "--as", "A\nB" + "x" * 5_000, "--reason", "\x1b[2J" + "x" * 5_000)
    (act,) = acts(ledger)

    assert (audit.MAX_ACTOR_LENGTH, "A Bx") == (len(act.actor), act.actor[:4])
    assert (500, " [2Jx") == (len(act.reason or ""), (act.reason or "")[:5])


# -- no secret, and nothing personal


def test_no_row_holds_a_secret_a_document_or_what_is_personal_of_an_order(
    run: Callable[..., Run],
    ledger: Engine,
    ids: dict[str, str],
    credential_key: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACKSTAR_API_KEY", "the-key-of-the-organisation")
    monkeypatch.setenv("TRACKSTAR_PROXY", f"http://u:{PASSWORD}@127.0.0.1:1")
    load_settings.cache_clear()
    with read_only(ledger) as db:
        encrypted = connections.encrypted_tokens(db)
    pasted = f"{credential_key} the-key-of-the-organisation {PASSWORD}"
    for name in ACTS:
        prepared(ledger, name)
        words = [word.format_map(ids) for word in ACTS[name][0]]
        assert 0 == run(*words, "--reason", f"pasted {pasted}", "--as", f"Bea {pasted}")[0], name
        with read_only(ledger) as db:
            encrypted |= {f"{name} {key}": value for key, value in connections.encrypted_tokens(db).items()}
    with read_only(ledger) as db:
        written = repr(db.execute(select(table)).all())

    assert set(ACTS) - {"add again"} == {act.action for act in acts(ledger)}
    assert "pasted" in written
    secrets = {TOKEN, NEW_TOKEN, credential_key, PASSWORD, "the-key-of-the-organisation", *encrypted.values()}
    assert set() == {each for each in (*secrets, PERSONAL, database_url) if each in written}


# -- asked


@pytest.fixture
def several(ledger: Engine, waits: str) -> str:
    """Acts of three people, an hour apart, the oldest first."""
    with ledger.begin() as db:
        audit.write(db, By("Ann", "first"), Action.REVEAL, Kind.CANCELLATION, waits)
        audit.write(db, By("Bea"), Action.PRUNE, Kind.LEDGER, after={"cancellations": 3})
        audit.write(db, By("Cara"), Action.HOLD, Kind.CONNECTION, "shop-1", before={"a": 1}, after={"a": None})
        for ago, actor in ((3, "Ann"), (2, "Bea"), (1, "Cara")):
            at = datetime.now(UTC) - timedelta(hours=ago)
            db.execute(update(table).where(table.c.actor == actor).values(at=at))
    return waits


@pytest.mark.parametrize(
    ("words", "actors"),
    [
        ((), ["Cara", "Bea", "Ann"]),
        (("--limit", "2"), ["Cara", "Bea"]),
        (("--actor", "Bea"), ["Bea"]),
        (("--action", "reveal"), ["Ann"]),
        (("--kind", "connection"), ["Cara"]),
        (("--target", "shop-1"), ["Cara"]),
        (("--target", "shop-2"), []),
        (("--since", "{90 minutes ago}"), ["Cara"]),
        (("--actor", "Bea", "--action", "hold"), []),
    ],
    ids=str,
)
@pytest.mark.usefixtures("several")
def test_acts_are_found_by_all_that_is_given_the_newest_first(
    run: Callable[..., Run], words: tuple[str, ...], actors: list[str]
) -> None:
    moment = f"{datetime.now(UTC) - timedelta(minutes=90):%Y-%m-%dT%H:%M:%S}"
    code, said = run("audit", "list", "--json", *(moment if "ago" in word else word for word in words))

    assert (0, actors) == (code, [json.loads(line)["actor"] for line in said.splitlines()])


def test_a_list_for_people_shows_what_changed(run: Callable[..., Run], several: str) -> None:
    head, *lines = run("audit", "list")[1].splitlines()

    assert ["at", "who", "did", "to", "id", "why", "what", "changed"] == head.split()
    assert ["Cara hold connection shop-1 a: 1 → none", "Bea prune ledger all cancellations: 3"] == [
        " ".join(line.split()[3:]) for line in lines[:2]
    ]
    assert lines[2].split()[3:] == ["Ann", "reveal", "cancellation", several, "first"]
    assert 2 == run("audit", "list", "--action", "guess")[0]


def test_the_timeline_of_a_cancellation_shows_who_acted(run: Callable[..., Run], several: str) -> None:
    run("withdraw", several, *WHY)
    said = " ".join(run("show", several)[1].split())

    assert said.index("reveal, by Ann: first") < said.index("withdraw, by Bea: asked by phone")
    shown = json.loads(run("show", several, "--json")[1])
    assert [("withdraw", "Bea"), ("reveal", "Ann")] == [(act["action"], act["actor"]) for act in shown["acts"]]


def test_connections_are_compared_without_their_tokens(vault: TokenVault, ledger: Engine, shop: str) -> None:
    with ledger.begin() as db, audit.recorded(db, By("Bea"), Action.ROTATE, Kind.CONNECTION, [shop]):
        connections.add(db, shop, vault.encrypt(TOKEN))  # the same token, encrypted anew
    act = act_of(ledger)

    assert {"token"} == {name for name in act["before"] if act["before"][name] != act["after"][name]}
    assert 8 == len(act["after"]["token"])
