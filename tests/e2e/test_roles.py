"""A deployment with the roles of ops/postgres/roles.sql: workers, people and reports, each as its own role.

What each has done is read from the server's log: a right that nobody has used is none that anybody needs.
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import typer
from harness.commands import run
from harness.deployment import API_KEY, Deployment, token_of
from harness.parts import PostgresServer, open_folder
from harness.receiver import Receiver
from harness.roles import OPERATOR, WORKER, migrate_as_owner, url_of
from harness.tour import DOCUMENT, prepare, walk

from worker.cli import app
from worker.dev.embedded import embedded_redis
from worker.dev.sandbox import Sandbox
from worker.ledger import rights
from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.core import TyperCommand as Command

# No command of these is an operator's: one that makes tables, the worker, and what needs no ledger or has its own.
OTHERS = {"migrate", "run", "health", "demo", "sandbox", "doctor"}
SETTINGS = {"FORCE_SYNC": "true", "WEBHOOK_ALLOW_PRIVATE": "true", "TRACKSTAR_ACCESS_TOKEN": token_of("default")}
LOGGED = "ALTER SYSTEM SET log_statement = 'all'; ALTER SYSTEM SET log_line_prefix = '<%u>'; SELECT pg_reload_conf()"
MADE_OLD = """
    UPDATE cancellations SET received_at = received_at - interval '400 days', ended_at = ended_at - interval '400 days'
        WHERE order_id IN ('old', 'alone') AND ended_at IS NOT NULL;
    UPDATE refunds SET changed_at = changed_at - interval '400 days' WHERE order_id IN ('old', 'alone');
    UPDATE documents SET kept_at = kept_at - interval '400 days';
    UPDATE dead_letters SET received_at = received_at - interval '400 days';
    UPDATE delivery_tries SET at = at - interval '400 days';
    UPDATE events SET created_at = created_at - interval '400 days' WHERE cancellation_id IS NULL
"""


class Scene:
    """A server of its own, and a deployment whose processes are the worker's or the operator's role."""

    def __init__(self, server: PostgresServer, deployment: Deployment) -> None:
        self.server, self.deployment = server, deployment

    def become(self, role: str) -> None:
        self.deployment.env["DATABASE_URL"] = url_of(self.server, role)

    def person(self, *words: str, typed: str = "") -> str:
        """Run a command of the operator, which succeeds; return what it said."""
        code, said = run(self.deployment, *words, typed=typed.encode())
        assert 0 == code, f"{words}: {said}"
        return said

    @property
    def log(self) -> str:
        return self.server.data.with_name("postgres.log").read_text()

    def used(self, role: str) -> set[tuple[str, str]]:
        """Return table and right of all that the role has done, from the server's log."""
        entries = re.split(r"^<", self.log, flags=re.MULTILINE)
        own = (each.partition(">")[2] for each in entries if each.startswith(f"{role}>"))
        return {each for entry in own for each in rights_of(entry)}


def rights_of(statement: str) -> Iterator[tuple[str, str]]:
    """Yield table and right of what a statement of the log does, as far as its text tells."""
    for table in re.findall(r'(?:FROM|JOIN|,)\s+"?(\w+)', statement):
        yield table, "SELECT"
    for each in statement.split("INSERT INTO ")[1:]:
        table, _, rest = each.partition(" ")
        yield table, "INSERT"
        if "DO UPDATE" in rest:
            yield table, "UPDATE"
    for table in re.findall(r"\bUPDATE (\w+)", statement):
        yield table, "UPDATE"
    for table in re.findall(r"DELETE FROM (\w+)", statement):
        yield table, "DELETE"
    if re.search(r"FOR (NO KEY )?UPDATE", statement):  # a lock needs it too
        of = re.findall(r"UPDATE OF (\w+)", statement) or re.findall(r"FROM (\w+)", statement)
        yield from ((table, "UPDATE") for table in of)


@pytest.fixture
def scene(tmp_path: Path, credential_key: str) -> Iterator[Scene]:
    with (
        open_folder("cancel-worker-roles-") as folder,
        embedded_redis() as redis,
        Sandbox(API_KEY, unknown_orders="open") as sandbox,
    ):
        server = PostgresServer.create(folder / "data")
        server.start()
        migrate_as_owner(server)
        for statement in LOGGED.split("; "):
            server.execute(statement)
        made = Deployment(redis.url, server.url, sandbox.world, sandbox.url, tmp_path, credential_key, SETTINGS)
        with closing(made):
            yield Scene(server, made)
        server.stop()


def commands(command: Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    for name, each in inner.items():
        yield from commands(each, (*path, name))
    if not inner:
        yield " ".join(path)


def unused(needs: dict[str, str], used: set[tuple[str, str]]) -> set[tuple[str, str]]:
    asked = {(table, verb) for table, verbs in needs.items() for verb in verbs.split() if verb != "USAGE"}
    return asked - used


@pytest.mark.timeout(600)  # each command is a process of its own
def test_each_command_of_people_works_as_the_operator_beside_a_worker_as_its_role(
    scene: Scene, tmp_path: Path
) -> None:
    made = scene.deployment
    prepare(made, tmp_path)
    scene.become(WORKER)
    worker = made.start_worker(TRACKSTAR_ACCESS_TOKEN="")
    worker.wait_until_consuming()
    scene.become(OPERATOR)

    walk(made, tmp_path)
    groups = "batches|connections|dead-letters|audit|events|endpoints|producers"
    ran = set(re.findall(rf"cancel-worker ((?:{groups}) [\w-]+|[\w-]+)", DOCUMENT))
    with Receiver() as receiver:
        ran |= set(the_rest(scene, receiver))

    root: Any = typer.main.get_command(app)
    assert set() == set(commands(root)) - ran - OTHERS
    assert 0 == worker.stop()
    assert [] == refused(worker.output)
    assert set() == unused(rights.OPERATOR, scene.used(OPERATOR))


def the_rest(scene: Scene, receiver: Receiver) -> Iterator[str]:
    """Run what the tour of the page does not show, and yield each command's name."""
    said = scene.person("endpoints", "add", receiver.url)
    (id_,) = re.findall(r"ep_[0-9a-f]{16}", said)
    token = "sandbox-token"
    for words in (
        ("connections", "add", "shop-1"),
        ("connections", "rotate", "shop-1"),
        ("connections", "rekey", "--force"),
        ("endpoints", "test", id_),
        ("endpoints", "list"),
        ("endpoints", "show", id_),
        ("endpoints", "rotate", id_),
        ("endpoints", "pause", id_),
        ("endpoints", "resume", id_),
        ("endpoints", "replay", id_, "--since", "2h"),
        ("events", "list"),
        ("producers", "show", "oms-a"),
        ("enqueue", "old", "-c", "shop-1", "--wait", "--timeout", "60"),
    ):
        scene.person(*words, typed=f"{token}\n")
        yield " ".join(words[:2])
    event = scene.person("events", "list", "--json").partition('"id":"')[2].partition('"')[0]
    scene.person("endpoints", "replay", id_, "--id", event)
    scene.person("endpoints", "remove", id_, "--reason", "moved")
    scene.person("producers", "remove", "oms-a", "--reason", "moved")
    scene.server.execute(MADE_OLD)
    assert not scene.person("prune", "--reason", "old").startswith("0 cancellations")
    yield from (
        "endpoints add",
        "endpoints remove",
        "producers remove",
        "events tail",
    )  # the last one reads Redis alone


def refused(output: str) -> list[str]:
    words = ("lacks a right", "InsufficientPrivilege", "not_permitted", "permission denied", ".crashed")
    return [line for line in output.splitlines() if any(word in line for word in words)]


@pytest.mark.timeout(300)
def test_a_worker_does_all_of_its_work_as_its_role_and_uses_each_right(scene: Scene) -> None:
    made = scene.deployment
    scene.become(OPERATOR)
    for name in ("shop-1", "wrong", "default"):
        made.trackstar.connect(name, token_of(name))
    scene.person("connections", "add", "shop-1", typed=token_of("shop-1"))
    scene.person("connections", "add", "wrong", typed="an-old-token")
    made.trackstar.add_order("shop-1", "refused", script=["400:integration"])
    made.trackstar.add_order("shop-1", "again", script=["503"])
    scene.become(WORKER)
    with Receiver() as receiver, Receiver(answer=lambda _: (410, {})) as gone:
        scene.become(OPERATOR)
        for url in (gone.url, receiver.url):
            scene.person("endpoints", "add", url)
        scene.become(WORKER)
        worker = made.start_worker()
        worker.wait_until_consuming()
        made.redis.xadd(INBOX, {"job": '{"connection_id": "shop-1"}'})
        ids = {name: made.client.enqueue("shop-1", name) for name in ("refused", "again", "old", "alone")}
        ids["default"] = made.client.enqueue("default", "o-1")
        ids["stranger"] = made.client.enqueue("stranger", "o-1")
        ids["wrong"] = made.client.enqueue("wrong", "o-1")
        ended = {
            name: made.client.wait(ids[name], 60).status for name in ("refused", "again", "old", "alone", "default")
        }
        assert {"refused": "rejected", "again": "succeeded", "old": "succeeded", "alone": "succeeded"} == {
            name: status for name, status in ended.items() if name != "default"
        }
        assert "succeeded" == ended["default"]
        made.wait_until(lambda: made.hold_of("wrong") == "credentials", "the hold")
        made.wait_until(lambda: "refund.released" in receiver.types(), "the webhook")
        made.wait_until(
            lambda: [(1,)] == scene.server.execute("SELECT count(*) FROM endpoints"), "the end of the other"
        )
    scene.server.execute("UPDATE cancellations SET order_snapshot = '{}' WHERE order_id = 'again'")  # of an old worker
    made.wait_until(
        lambda: not scene.server.execute("SELECT 1 FROM cancellations WHERE order_snapshot IS NOT NULL"), "its move"
    )
    scene.server.execute(MADE_OLD)
    assert 0 == worker.stop()
    second = made.start_worker()  # which looks at once for what is old
    second.wait_for_line("retention.pruned")
    made.wait_until(
        lambda: not scene.server.execute("SELECT 1 FROM cancellations WHERE order_id = 'old'"), "retention"
    )
    assert 0 == second.stop()

    assert [] == refused(worker.output) + refused(second.output)
    assert "INSERT INTO documents" in scene.log
    assert '"line_items"' not in scene.log  # statements are logged, what they carry is not
    assert set() == unused(rights.WORKER, scene.used(WORKER))
