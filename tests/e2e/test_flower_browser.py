"""Flower, as a person sees it in a real browser: which order of which connection, and its verdict, and no secret.

`make pictures` runs these too, and keeps the two pictures that the README shows.
"""

from __future__ import annotations

import os
import re
import struct
from base64 import b64encode
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from harness.browser import Browser, browser
from harness.commands import run
from harness.deployment import CELERY, token_of
from harness.flower_server import AUTH, Flower, open_flower
from sqlalchemy import make_url

from worker.ledger.vault import TokenVault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment, MakeDeployment

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SIZE = (1000, 600)
WORKERS = ("worker-1@cancel", "worker-2@cancel")
SHOPS = ("shop-1", "shop-2", "shop-3")
REDIS_PASSWORD, LEDGER_PASSWORD = "of-redis-4711", "of-the-ledger-4711"
ORDER, VERDICT = "Connection, order", "Verdict or reason"  # the headers of the columns args and result
# What the job and Trackstar's order say of a person; the sandbox's sample order is John Doe's.
PERSONAL = ("ann@example.com", "moved to Leith", "R-1001", "#1001", "John Doe", "123 Main St", "New York", "10001")

# What Flower's own pages do wrong, and nothing of ours is in: another fault, or one of these elsewhere, fails.
KNOWN_FAULTS = {
    "aria-valid-attr": {".current", "_next", "_previous"},  # aria-controls of the table's pages, with an odd value
    "color-contrast": {"a[href$=", ".page-eyebrow", "button[data-task-state", "p"},  # its green on its grey
    "empty-table-header": {"tfoot"},  # of the sums below the workers
    "page-has-heading-one": {"html"},
}


class Scene:
    """Two workers, four orders, a Flower, and who looks at it."""

    def __init__(self, deployment: Deployment, flower: Flower, browser: Browser) -> None:
        self.deployment = deployment
        self.flower = flower
        self.browser = browser
        self.ids: dict[str, str] = {}

    def open(self, path: str) -> None:
        self.browser.open(self.flower.url + path)

    def tasks(self) -> dict[str, dict[str, str]]:
        """Return the rows of the list of tasks by their order."""
        return {row[ORDER]: row for row in self.browser.rows("#tasks-table")}

    def details(self) -> dict[str, str]:
        """Return what a task's own page says, by its label."""
        return dict(zip(self.browser.texts("dt"), self.browser.texts("dd"), strict=True))

    def cancel(self, connection_id: str, order_id: str, **options: Any) -> None:
        self.ids[order_id] = self.deployment.client.enqueue(connection_id, order_id, **options)


@pytest.fixture(scope="module")
def scene(make_deployment: MakeDeployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One succeeded, one that waits an hour for its retry, one refused, one whose time was over."""
    settings = {"RETRY_BASE_SECONDS": "7200", "RETRY_CAP_SECONDS": "7200", "CELERY_REMOTE_CONTROL": "true"}
    with ExitStack() as stack:
        deployment = stack.enter_context(make_deployment("postgresql", settings))
        _lock(deployment)
        deployment.connect(TokenVault([deployment.credential_key]), SHOPS)
        workers = [deployment.start_worker(command=(*CELERY, "-n", name)) for name in WORKERS]
        flower = stack.enter_context(open_flower(deployment, tmp_path_factory.mktemp("flower")))
        made = Scene(deployment, flower, stack.enter_context(browser()))
        for worker in workers:
            worker.wait_until_consuming()
        made.browser.log_in(f"{flower.url}/workers", AUTH)
        made.browser.wait_for(lambda: 2 == len(made.browser.rows("#workers-table")), "both workers")  # it hears them
        _cancel_all(made)
        made.open("/tasks")
        states = {"SUCCESS": 1, "RETRY": 1, "FAILURE": 2}
        made.browser.reload_until(lambda: states == _count(made.tasks()), "all four")
        yield made


def _lock(deployment: Deployment) -> None:
    """Let the processes come in with passwords; the test's own connections need none, and may use no channel."""
    deployment.redis.execute_command("ACL", "SETUSER", "cancel", "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all")
    deployment.redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
    deployment.env["REDIS_URL"] = deployment.redis_url.replace("://", f"://cancel:{REDIS_PASSWORD}@")
    ledger = make_url(deployment.database_url).set(password=LEDGER_PASSWORD)
    deployment.env["DATABASE_URL"] = ledger.render_as_string(hide_password=False)


def _cancel_all(scene: Scene) -> None:
    trackstar = scene.deployment.trackstar
    trackstar.add_order("shop-1", "1001")
    trackstar.add_order("shop-2", "1002", script=["503"])
    trackstar.add_order("shop-1", "1003", status="fulfilled")
    trackstar.add_order("shop-3", "1004")
    assert 0 == run(scene.deployment, "connections", "hold", "shop-3")[0]
    named = {"requested_by": PERSONAL[0], "reason": PERSONAL[1], "reference_id": PERSONAL[2]}
    scene.cancel("shop-1", "1001", order_number=PERSONAL[3], **named)
    scene.cancel("shop-2", "1002", **named)
    scene.cancel("shop-1", "1003", **named)
    scene.cancel("shop-3", "1004", send_by=datetime.now(UTC) + timedelta(seconds=1), **named)


def _count(rows: dict[str, dict[str, str]]) -> dict[str, int]:
    states = [row["State"] for row in rows.values()]
    return {state: states.count(state) for state in states}


def _keep_picture(scene: Scene, name: str) -> None:
    if os.environ.get("PICTURES"):
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.png").write_bytes(scene.browser.picture(*SIZE))


def test_without_the_password_nothing_is_seen(scene: Scene) -> None:
    page = f"{scene.flower.url}/workers"
    with browser() as stranger:
        stranger.open(page)

        assert "" == stranger.text
        for auth in (("ann", "wrong"), ("eve", AUTH[1])):
            stranger.log_in(page, auth)

            assert "" == stranger.text
            assert WORKERS[0] not in stranger.source
    assert 401 == scene.flower.status("/workers")


def test_a_person_sees_both_workers(scene: Scene) -> None:
    scene.open("/workers")
    shown = scene.browser.wait_for(lambda: scene.browser.rows("#workers-table"), "the workers")

    assert [(name, "Online") for name in WORKERS] == sorted((row["Worker"], row["Status"]) for row in shown)
    for name in WORKERS:
        scene.open(f"/worker/{name}")

        assert name in scene.browser.text
        assert "Request threads" in scene.browser.text
        assert re.search(r">\s*cancellations\s*<", scene.browser.source), "the queue of Celery's producers"
        assert "worker.attempt_batch" in scene.browser.source


def test_each_cancellation_is_followed_to_its_verdict(scene: Scene) -> None:
    retried = scene.deployment.record(scene.ids["1002"])
    assert retried.run_at is not None
    due = f"{retried.run_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    scene.open("/tasks")
    scene.browser.wait_for(scene.tasks, "the list")
    _keep_picture(scene, "flower-tasks")

    assert {
        "('shop-1', '1001')": ("SUCCESS", "cancelled by response"),
        "('shop-2', '1002')": ("RETRY", f"http_503, again at {due}"),
        "('shop-1', '1003')": ("FAILURE", "rejected: refused_by_warehouse (not_cancelled)"),
        "('shop-3', '1004')": ("FAILURE", "expired: send_by_passed (not_cancelled)"),
    } == {order: (row["State"], row[VERDICT]) for order, row in scene.tasks().items()}

    scene.browser.type("input[type=search]", "args:1002")
    scene.browser.wait_for(lambda: ["('shop-2', '1002')"] == list(scene.tasks()), "what is looked for")
    scene.browser.click(f"a[href$='/task/{scene.ids['1002']}']")
    scene.browser.wait_for(scene.details, "its own page")
    _keep_picture(scene, "flower-task")
    before = scene.details()
    scene.deployment.client.change(scene.ids["1002"], now=True)
    scene.browser.reload_until(lambda: "SUCCESS" == scene.details().get("Status"), "its end")
    after = scene.details()

    assert ("RETRY", retried.run_at.astimezone(UTC).isoformat()) == (before["Status"], before["ETA"])
    assert "('shop-2', '1002')" == before["Arguments"] == after["Arguments"]
    assert "cancelled by response" == after["Result"]
    assert set() == {"Exception", "ETA", "Traceback"} & set(after)  # nothing of the retry is left


def test_a_rejected_one_is_found_among_the_failed_with_its_reason(scene: Scene) -> None:
    scene.open("/tasks")
    scene.browser.click("button[data-task-state=FAILURE]")
    scene.browser.wait_for(lambda: {"FAILURE": 2} == _count(scene.tasks()), "the failed ones")
    scene.browser.click(f"a[href$='/task/{scene.ids['1003']}']")
    scene.browser.wait_for(scene.details, "its own page")
    told = scene.details()

    reason = "rejected: refused_by_warehouse (not_cancelled)"
    assert ("FAILURE", "('shop-1', '1003')", reason) == (told["Status"], told["Arguments"], told["Result"])
    assert "Traceback" not in told


def test_no_page_holds_a_secret_or_anything_personal(scene: Scene) -> None:
    sources = {**_walk(scene), **_answers(scene)}
    secrets = [REDIS_PASSWORD, LEDGER_PASSWORD, AUTH[1], b64encode(":".join(AUTH).encode()).decode()]
    secrets += [scene.deployment.api_key, scene.deployment.credential_key, *map(token_of, SHOPS)]

    kinds = {"/workers", "/worker/worker-1@cancel", "/worker/worker-2@cancel", "/tasks", "/broker"}
    assert kinds | {f"/task/{each}" for each in scene.ids.values()} <= set(sources)
    assert [] == [(path, word) for path, source in sources.items() for word in (*secrets, *PERSONAL) if word in source]
    # The worker has it all: these would be seen.
    kept = scene.deployment.timeline(scene.ids["1001"]).cancellation
    assert "John Doe" in str(kept.order_snapshot)
    assert PERSONAL[0] == kept.requested_by


def test_no_page_asks_another_server_for_anything(scene: Scene) -> None:
    scene.browser.requested()
    _walk(scene)

    assert {scene.flower.url.rpartition("/")[2]} == scene.browser.requested()


def _walk(scene: Scene) -> dict[str, str]:
    """Return the source of each page that links lead to, its scripts having run, by its path."""
    sources: dict[str, str] = {}
    scene.open("/")
    to_do = {scene.flower.url + path for path in ("/", "/workers", "/nowhere")}
    to_do |= {f"{scene.flower.url}/task/{each}" for each in scene.ids.values()}
    while to_do:
        link = to_do.pop()
        scene.browser.open(link)
        if scene.browser.all("#tasks-table, #workers-table"):
            scene.browser.wait_for(lambda: scene.browser.all("tbody td"), "its rows")
        sources[link.removeprefix(scene.flower.url).replace("%40", "@")] = scene.browser.source
        # A list that is chosen by its query holds what the whole list holds.
        links = {each for each in scene.browser.links() if "?" not in each}
        to_do |= {each for each in links if each.removeprefix(scene.flower.url).replace("%40", "@") not in sources}
    return sources


def _answers(scene: Scene) -> dict[str, str]:
    """Return what its API and its metrics say, by their path."""
    names = ("workers", "tasks", "task/types", "queues/length", f"task/info/{scene.ids['1001']}")
    paths = [*(f"/api/{name}" for name in names), "/metrics", "/workers?json=1"]
    return {path: requests.get(scene.flower.url + path, auth=AUTH, timeout=30).text for path in paths}


def test_nothing_that_is_ours_is_hard_to_read_or_to_use(scene: Scene) -> None:
    new = []
    for path in ("/workers", "/worker/worker-1@cancel", "/tasks", f"/task/{scene.ids['1002']}", "/broker", "/nowhere"):
        scene.open(path)
        if path in {"/workers", "/tasks"}:
            scene.browser.wait_for(lambda: scene.browser.all("tbody td"), "its rows")
        for rule, elements in scene.browser.faults().items():
            known = KNOWN_FAULTS.get(rule, set())
            new += [(path, rule, each) for each in elements if not any(part in each for part in known)]

    assert [] == new


def test_the_committed_pictures_are_small() -> None:
    for name in ("flower-tasks.png", "flower-task.png"):
        picture = (PICTURES / name).read_bytes()

        assert SIZE == struct.unpack(">II", picture[16:24])
        assert len(picture) < 80_000
