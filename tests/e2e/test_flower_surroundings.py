"""Flower behind a proxy under a path, after a restart, and with as many tasks as it keeps; seen in a real browser."""

from __future__ import annotations

import re
import textwrap
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import pytest
import requests
from celery import Celery
from harness.browser import Browser, browser
from harness.flower_server import AUTH, Flower, nginx, open_flower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.deployment import Deployment

DOCUMENT = Path(__file__).parents[2] / "docs" / "operate.md"
KEPT = 100_000  # Flower's own default of FLOWER_MAX_TASKS
AT_ONCE = 10_000  # Redis gives up on who hears too slowly
USABLE_SECONDS = 15.0  # two on an idle machine
MAX_MEGABYTES = 1000  # 570 were seen

pytestmark = pytest.mark.deployment(ledgers=("sqlite",))


@contextmanager
def teller(deployment: Deployment) -> Iterator[Callable[..., str]]:
    """Tell Flower, as a worker does, that cancellations have succeeded: it takes numbers, and returns the last id."""
    deployment.wait_until(deployment.redis.pubsub_numpat, "a Flower that hears")
    with (
        Celery("teller", broker=deployment.redis_url, set_as_current=False) as app,
        app.connection_for_write() as link,
    ):
        options: dict[str, Any] = {"buffer_while_offline": False, "buffer_group": {"task"}, "buffer_limit": 500}
        dispatcher = app.events.Dispatcher(link, hostname="worker@cancel", **options)

        def tell(numbers: Iterable[int]) -> str:
            for number in numbers:
                uuid = str(uuid4())
                told = {"uuid": uuid, "name": "cancel_order", "args": repr(("shop-1", f"o-{number}")), "kwargs": "{}"}
                result = "cancelled by response"
                dispatcher.send("task-succeeded", received=time.time(), result=result, runtime=0.05, **told)
            dispatcher.flush()
            return uuid

        yield tell


def orders(page: Browser) -> list[str]:
    return [row["Connection, order"] for row in page.rows("#tasks-table")]


def test_behind_nginx_under_a_path_it_is_the_same(deployment: Deployment, tmp_path: Path) -> None:
    documented = re.findall(r"^  ```nginx\n(.*?)^  ```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert 1 == len(documented)
    with open_flower(deployment, tmp_path, FLOWER_URL_PREFIX="/flower") as flower, teller(deployment) as tell:
        uuid = tell([1001])
        location = textwrap.dedent(documented[0]).replace("http://127.0.0.1:5555", flower.url)
        with nginx(tmp_path, location) as front, browser() as page:
            deployment.wait_until(lambda: requests.get(f"{front}/flower/healthcheck", timeout=5).ok, "nginx")

            assert 401 == requests.get(f"{front}/flower/tasks", timeout=5).status_code
            page.log_in(f"{front}/flower/", AUTH)
            page.click("a[href='/flower/tasks']")
            page.reload_until(lambda: ["('shop-1', 'o-1001')"] == orders(page), "the list")
            page.click(f"a[href='/flower/task/{uuid}']")
            page.wait_for(lambda: "cancelled by response" in page.text, "its own page")

            assert f"{front}/flower/task/{uuid}" == page.url
            assert {f"{front}/flower/{name}" for name in ("", "workers", "tasks", "broker")} <= page.links()
            assert {front.rpartition("/")[2]} == page.requested()
            # An old browser says no more than this of where it comes from.
            asked = {"draw": 1, "start": 0, "length": 1, "order[0][column]": 0}
            answer = requests.post(
                f"{front}/flower/tasks/datatable", asked, headers={"Origin": front}, auth=AUTH, timeout=5
            )
            assert (200, 1) == (answer.status_code, answer.json()["recordsTotal"])


def test_columns_that_somebody_chose_win(deployment: Deployment, tmp_path: Path) -> None:
    with open_flower(deployment, tmp_path, FLOWER_TASKS_COLUMNS="uuid,name") as flower:
        page = requests.get(f"{flower.url}/tasks", auth=AUTH, timeout=10).text

        assert ["uuid", "name"] == re.findall(r'data-column="(\w+)"', page)


def test_after_a_restart_the_list_begins_anew_and_what_goes_on_is_in_it(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    deployment.trackstar.add_order(shop, "1001")
    deployment.trackstar.add_order(shop, "1002", script=["503"])
    deployment.start_worker(RETRY_BASE_SECONDS="7200", RETRY_CAP_SECONDS="7200").wait_until_consuming()
    with open_flower(deployment, tmp_path) as flower, browser() as page:
        page.log_in(f"{flower.url}/workers", AUTH)
        page.wait_for(lambda: page.rows("#workers-table"), "the worker")
        ended, waits = (deployment.client.enqueue(shop, order) for order in ("1001", "1002"))
        page.open(f"{flower.url}/tasks")
        page.reload_until(lambda: 2 == len(orders(page)), "both")
        flower.restart()
        deployment.wait_until(flower.listens, "Flower")
        page.open(f"{flower.url}/tasks")
        page.wait_for(lambda: "No tasks" in page.text, "an empty list")
        page.open(f"{flower.url}/task/{ended}")

        assert f"Unknown task '{ended}'" in page.text
        page.open(f"{flower.url}/workers")
        page.wait_for(lambda: page.rows("#workers-table"), "the worker")
        deployment.client.change(waits, now=True)
        page.open(f"{flower.url}/tasks")
        (row,) = page.reload_until(lambda: page.rows("#tasks-table"), "the one that went on")
        assert (f"('{shop}', '1002')", "cancelled by response") == (row["Connection, order"], row["Verdict or reason"])


def test_a_list_that_is_to_be_kept_is_there_after_a_restart(deployment: Deployment, tmp_path: Path) -> None:
    kept = {"FLOWER_PERSISTENT": "true", "FLOWER_DB": str(tmp_path / "flower.db")}
    with open_flower(deployment, tmp_path, **kept) as flower, browser() as page:
        with teller(deployment) as tell:
            tell([1001, 1002])
        page.log_in(f"{flower.url}/tasks", AUTH)
        both = {"('shop-1', 'o-1001')", "('shop-1', 'o-1002')"}
        page.reload_until(lambda: both == set(orders(page)), "both")
        flower.restart()
        deployment.wait_until(flower.listens, "Flower")
        page.open(f"{flower.url}/tasks")
        page.wait_for(lambda: both == set(orders(page)), "both again")


@pytest.mark.timeout(300)
def test_with_as_many_as_it_keeps_it_answers_and_grows_no_more(deployment: Deployment, tmp_path: Path) -> None:
    with open_flower(deployment, tmp_path) as flower, teller(deployment) as tell, browser() as page:
        for start in range(0, KEPT + AT_ONCE, AT_ONCE):
            tell(range(start, start + AT_ONCE))
            deployment.wait_until(partial(heard, flower, start + AT_ONCE), "that all is heard", 60)
        begun = time.monotonic()
        page.log_in(f"{flower.url}/tasks", AUTH)
        page.wait_for(lambda: f"('shop-1', 'o-{KEPT + AT_ONCE - 1}')" in orders(page), "the newest")

        assert f"of {KEPT:,} tasks" in page.text
        page.type("input[type=search]", f"args:o-{KEPT - 1}")
        page.wait_for(lambda: [f"('shop-1', 'o-{KEPT - 1}')"] == orders(page), "what is looked for")
        assert time.monotonic() - begun < USABLE_SECONDS
        page.type("input[type=search]", "args:o-17'")  # the oldest are gone
        page.wait_for(lambda: "No tasks match" in page.text, "that it is gone")
        assert psutil.Process(flower.process.pid).memory_info().rss < MAX_MEGABYTES * 1_000_000


def heard(flower: Flower, number: int) -> bool:
    metrics = requests.get(f"{flower.url}/metrics", timeout=60).text
    counted = re.search(r"^flower_events_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    return counted is not None and number == float(counted[1])
