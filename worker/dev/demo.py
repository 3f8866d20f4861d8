"""`cancel-worker demo`: the whole thing in a minute, with real parts, on fourteen orders that tell the story.

Knows the story; everything that plays it is the product itself and the sandbox.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import requests
from cryptography.fernet import Fernet
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group
from rich.live import Live
from rich.table import Table

from worker.cancellation.order_proof import RefundNews
from worker.client import CancelClient
from worker.dev.embedded import embedded_redis, free_port
from worker.dev.receiver import LittleReceiver
from worker.dev.sandbox import Sandbox
from worker.ledger import connections, endpoints, migrations
from worker.ledger.database import open_ledger
from worker.ledger.vault import TokenVault, of_connection, of_endpoint
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

    from worker.ledger.record import Cancellation

CONNECTION = "demo-shop"
REQUEST_SECONDS = 2.0
PATIENCE_SECONDS = 45.0
FLOWER_SECONDS = 15.0
METRICS_SECONDS = 5.0
WEBHOOK_SECONDS = 15.0
BY_SOMEBODY = "A-13"
# What a proof tells an OMS, over HTTP.
MONEY = {"cancelled": ["refund.released"], "not_cancelled": ["refund.refused"]}


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """One order, what happens to it, and how its cancel must end."""

    order: str
    story: str
    script: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    order_status: str = "open"
    known: bool = True
    status: str = "succeeded"
    verdict: str = "cancelled"
    attempts: int = 1


STORY = (
    Scene(order="A-01", story="plain success"),
    Scene(order="A-02", story="503, then success", script=("503",), attempts=2),
    Scene(
        order="A-03",
        story="applied, then 500: proven by read-back",
        script=("applied_then:500",),
        reads=("fresh",),
        attempts=2,
    ),
    Scene(order="A-04", story="already shipped", order_status="fulfilled", status="rejected", verdict="not_cancelled"),
    Scene(
        order="A-05",
        story="this warehouse has no cancel (501)",
        script=("501:integration",),
        status="rejected",
        verdict="not_cancelled",
    ),
    Scene(order="A-06", story="429 twice: waits, spends no attempt", script=("429:1", "429:1")),
    Scene(
        order="A-07",
        story="time-out that had landed",
        script=(f"applied_then:hang:{REQUEST_SECONDS + 2:g}",),
        reads=("fresh",),
        attempts=2,
    ),
    Scene(order="A-08", story="enqueued twice: one record, one request"),
    Scene(order="A-09", story="accepted, seen cancelled later", script=("open:1",), reads=("fresh", "fresh", "fresh")),
    Scene(
        order="A-10",
        story="unknown order: asked for again, then refused",
        known=False,
        status="rejected",
        verdict="not_cancelled",
        attempts=2,
    ),
    Scene(order="A-11", story="a gateway's HTML 502, then success", script=("html:502",), attempts=2),
    Scene(order="A-12", story="connection reset, then success", script=("reset",), attempts=2),
    Scene(order=BY_SOMEBODY, story="cancelled by somebody else: proven by the next crawl", status="rejected"),
    Scene(
        order="A-14",
        story="refused by the warehouse, open in a copy that is too old",
        script=("422:integration",),
        status="rejected",
        verdict="unknown",
    ),
)


def play(console: Console, refund: Callable[[Cancellation], Text]) -> bool:
    """Show the story on a console; return whether every order ended as told. KEEP=1 leaves all of it up.

    `refund` says how the answer to "safe to refund?" is shown.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cancel-worker-demo-")))
        console.print("Starting Redis, the sandbox, the worker and Flower ...", style="dim")
        stage = Stage(stack, folder)
        # Before the story: both answer for as long as it runs.
        console.print(f"Flower: {stage.flower_link}   (user demo, password {stage.password})")
        console.print(f"Metrics: {stage.metrics_link}   (for Prometheus)")
        console.print(f"Webhooks: to {stage.receiver.url}   (a little receiver; it verifies each signature)")
        console.print()
        ids = stage.enqueue()
        with Live(console=console, refresh_per_second=8) as live:
            ended = stage.watch(ids, live, refund)
            wrong = stage.webhook_gaps(live.console)
        wrong += [sentence for scene in STORY for sentence in _differences(scene, ended[scene.order], stage.sandbox)]
        wrong += stage.flower_gaps(list(ids.values()))
        wrong += stage.metrics_gaps()
        console.print()
        for sentence in wrong:
            console.print(sentence, style="red")
        console.print(f"The ledger: {folder / 'ledger.sqlite3'}; all of it goes with this command.", style="dim")
        if os.environ.get("KEEP") == "1":
            console.print("KEEP=1: all of it stays up until Ctrl-C.")
            signal.pause()
    if not wrong:
        console.print(f"All {len(STORY)} orders ended as told.", style="green")
    return not wrong


class Stage:
    """The running parts of one demo; `stack` ends them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        key = Fernet.generate_key().decode()
        api_key, token = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
        database_url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        redis = stack.enter_context(embedded_redis())
        self.sandbox = stack.enter_context(Sandbox(api_key=api_key))
        secret = new_secret()
        self.receiver = stack.enter_context(LittleReceiver(secret))
        self._money: dict[str, list[str]] = defaultdict(list)  # types of events, by order
        self._crawled = False
        self._write_story(token)
        self._prepare_ledger(database_url, TokenVault([key]), token, secret)
        self.password = secrets.token_urlsafe(9)
        self._flower_port, self._health_port = free_port(), free_port()
        environment = {
            # Of a setting that a person has in a file, the demo has its own value.
            **{name: value for name, value in os.environ.items() if not name.endswith("_FILE")},
            "REDIS_URL": redis.url,
            "DATABASE_URL": database_url,
            "TRACKSTAR_API_KEY": api_key,
            "TRACKSTAR_BASE_URL": self.sandbox.url,
            "CREDENTIAL_KEYS": key,
            "REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS),
            "RETRY_BASE_SECONDS": "0.5",
            "READ_BACK_SECONDS": "2,5,10,20,3600",
            "NOT_FOUND_GRACE_SECONDS": "5",
            "FLOWER_BASIC_AUTH": f"demo:{self.password}",
            "HEALTH_ADDRESS": "127.0.0.1",
            "HEALTH_PORT": str(self._health_port),
            "WEBHOOK_ALLOW_PRIVATE": "true",
        }
        for name in ("TRACKSTAR_ACCESS_TOKEN", "SENTRY_DSN"):  # the demo calls nobody outside
            environment.pop(name, None)
        flower = ["flower", f"--port={self._flower_port}", "--address=127.0.0.1"]
        stack.enter_context(_process(["-A", "worker", *flower], environment, folder / "flower.log"))
        self._wait_for_flower(folder / "flower.log")
        worker = ["worker", "--hostname", "cancel@%h", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
        stack.enter_context(_process(["-A", "worker", *worker], environment, folder / "worker.log"))
        self.client = CancelClient(redis.url, database_url)
        stack.callback(self.client.close)

    @property
    def flower_link(self) -> str:
        return f"http://127.0.0.1:{self._flower_port}/tasks"

    @property
    def metrics_link(self) -> str:
        return f"http://127.0.0.1:{self._health_port}/metrics"

    def enqueue(self) -> dict[str, str]:
        """Enqueue the story, one order twice; return the record ids by order."""
        ids = {scene.order: self.client.enqueue(CONNECTION, scene.order, requested_by="demo") for scene in STORY}
        self.client.enqueue(CONNECTION, "A-08", requested_by="demo")
        return ids

    def watch(
        self, ids: dict[str, str], live: Live, refund: Callable[[Cancellation], Text]
    ) -> dict[str, Cancellation | None]:
        """Show the table until every order has ended as told, or patience has."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = {order: self.client.get(record_id) for order, record_id in ids.items()}
            live.update(_table(found, refund))
            self._show_webhooks(live.console)
            self._crawl_once(found[BY_SOMEBODY])
            if time.monotonic() > deadline or all(_as_told(scene, found[scene.order]) for scene in STORY):
                return found
            time.sleep(0.1)

    def _crawl_once(self, found: Cancellation | None) -> None:
        """Let Trackstar renew its copy once the warehouse has refused what somebody else had cancelled."""
        if not self._crawled and found is not None and found.ended:
            self._crawled = True
            self.sandbox.world.sync(CONNECTION)

    def _show_webhooks(self, console: Console) -> None:
        """Show what has reached the receiver since it was asked last."""
        while not self.receiver.verified.empty():
            event = self.receiver.verified.get()
            self._money[event["order_id"]].append(event["type"])
            console.print(f"Webhook: {event['type']} of {event['order_id']}, signature verified", highlight=False)

    def webhook_gaps(self, console: Console) -> list[str]:
        """Wait for what proofs tell; return a sentence for each order of which the receiver heard otherwise."""
        deadline = time.monotonic() + WEBHOOK_SECONDS
        while True:
            self._show_webhooks(console)
            wrong = [scene for scene in STORY if self._money[scene.order] != MONEY.get(scene.verdict, [])]
            if not wrong or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return [f"Webhooks told {self._money[each.order]} of {each.order}." for each in wrong]

    def flower_gaps(self, ids: Sequence[str]) -> list[str]:
        """Ask Flower for every cancellation; return a sentence for each that it does not show as ended."""
        deadline = time.monotonic() + FLOWER_SECONDS
        while True:
            states = {record_id: self._flower_state(record_id) for record_id in ids}
            missing = [record_id for record_id, state in states.items() if state not in {"SUCCESS", "FAILURE"}]
            if not missing or time.monotonic() > deadline:
                return [f"Flower shows {record_id} as {states[record_id] or 'unknown'}." for record_id in missing]
            time.sleep(0.2)

    def _flower_state(self, record_id: str) -> str | None:
        url = f"http://127.0.0.1:{self._flower_port}/api/task/info/{record_id}"
        answer = requests.get(url, auth=("demo", self.password), timeout=5)
        return answer.json().get("state") if answer.ok else None

    def metrics_gaps(self) -> list[str]:
        """Ask the worker what it has counted; return a sentence if that is not every end."""
        deadline = time.monotonic() + METRICS_SECONDS
        while (ended := self._counted_ends()) != len(STORY):
            if time.monotonic() > deadline:
                return [f"{self.metrics_link} counts {ended:g} ends of {len(STORY)}."]
            time.sleep(0.2)
        return []

    def _counted_ends(self) -> float:
        try:
            page = requests.get(self.metrics_link, timeout=5).text
        except requests.RequestException:
            return 0.0
        samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == "cancel_worker_ended_total")

    def _write_story(self, token: str) -> None:
        self.sandbox.world.connect(CONNECTION, access_token=token)
        for scene in STORY:
            if scene.known:
                self.sandbox.world.add_order(
                    CONNECTION, scene.order, status=scene.order_status, script=scene.script, reads=scene.reads
                )

        # The copy does not show it before the next crawl.
        self.sandbox.world.cancel_by_somebody(CONNECTION, BY_SOMEBODY)

    def _prepare_ledger(self, database_url: str, vault: TokenVault, token: str, secret: str) -> None:
        engine = open_ledger(database_url)
        migrations.migrate(engine)
        with engine.begin() as db:
            encrypted = vault.encrypt(token, of_connection(CONNECTION))
            connections.add(db, CONNECTION, encrypted, name="Demo shop", integration_name="sandbox")
            money = [f"refund.{word}" for word in RefundNews]
            id_ = endpoints.new_id()
            encrypted = vault.encrypt(secret, of_endpoint(id_))
            endpoints.add(db, self.receiver.url, encrypted, types=money, connections=[CONNECTION], id_=id_)
        engine.dispose()

    def _wait_for_flower(self, output: Path) -> None:
        deadline = time.monotonic() + FLOWER_SECONDS
        while time.monotonic() < deadline:
            try:
                if requests.get(f"http://127.0.0.1:{self._flower_port}/healthcheck", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise TimeoutError(f"Flower did not start: {output.read_text()[-500:]}")


class _process:  # noqa: N801 - it reads as a with-statement
    """A `celery` process, ended with the block."""

    def __init__(self, arguments: list[str], environment: dict[str, str], output: Path) -> None:
        self._command = [sys.executable, "-W", "ignore", "-m", "celery", *arguments]
        self._environment, self._output = environment, output

    def __enter__(self) -> subprocess.Popen[bytes]:
        with self._output.open("wb") as output:
            self._running = subprocess.Popen(  # noqa: S603 - our own command line
                self._command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        return self._running

    def __exit__(self, *_: object) -> None:
        self._running.terminate()
        try:
            self._running.wait(20)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()


def _as_told(scene: Scene, found: Cancellation | None) -> bool:
    return found is not None and (found.status, found.verdict, found.attempts, found.known_by is not None) == (
        scene.status,
        scene.verdict,
        scene.attempts,
        scene.verdict == "unknown",
    )


def _differences(scene: Scene, found: Cancellation | None, sandbox: Sandbox) -> Iterator[str]:
    if not _as_told(scene, found):
        now = f"{found.status}, {found.verdict}, {found.attempts} attempts" if found else "not in the ledger"
        yield f"{scene.order} ({scene.story}): told {scene.status}, {scene.verdict}; it is {now}."
    if scene.known and scene.verdict == "cancelled":
        truth = sandbox.world.order(CONNECTION, scene.order).truth
        if truth.max_in_flight > 1 or len(truth.keys) > 1:
            yield f"{scene.order} was asked with {len(truth.keys)} keys, {truth.max_in_flight} at once."
        if truth.status != "cancelled":
            yield f"{scene.order} is called cancelled, and the warehouse says {truth.status}."


def _table(found: dict[str, Cancellation | None], refund: Callable[[Cancellation], Text]) -> Group:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("order", "what happens", "status", "verdict", "evidence", "tries", "refund"):
        table.add_column(name, no_wrap=name != "what happens")
    for scene in STORY:
        row = found[scene.order]
        if row is None:
            table.add_row(scene.order, scene.story, "on the inbox")
            continue
        table.add_row(
            scene.order,
            scene.story,
            row.status,
            row.verdict or "",
            row.evidence or "",
            str(row.attempts),
            refund(row),
        )
    return Group(table)
