"""A real Prometheus scrapes two real workers, and evaluates the alerts that this project ships."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from harness.grafana import dashboard, queries, with_variables
from harness.parts import part
from harness.prometheus import JOB, Prometheus, selectors

from worker.ledger import producers
from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment

FOLDER = Path(__file__).parents[2] / "ops" / "prometheus"
ALERTS = FOLDER / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
BOARD = dashboard("cancel-worker")

pytestmark = pytest.mark.deployment(
    ledgers=("postgresql",), settings={"HEALTH_PORT": "0", "METRICS_CONNECTIONS": "true"}
)


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [part("promtool"), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    for kind, file in (("rules", ALERTS), ("config", FOLDER / "prometheus.yaml")):
        checked = promtool("check", kind, file)
        assert 0 == checked.returncode, checked.stderr


def test_each_alert_is_quiet_and_fires_on_a_series_made_for_it() -> None:
    tested = promtool("test", "rules", FOLDER / "alerts_test.yaml")

    assert 0 == tested.returncode, tested.stdout + tested.stderr


def test_each_alert_has_such_a_series() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]

    assert NAMES == [each["name"] for each in tests]
    for each in tests:
        quiet, firing = each["promql_expr_test"]
        assert [] == quiet["exp_samples"]
        assert 1 == len(firing["exp_samples"])
        assert {True} == {f'"{each["name"]}"' in one["expr"] for one in (quiet, firing)}


def test_an_alert_whose_threshold_is_changed_turns_that_red(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "alerts_test.yaml", tmp_path)
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text().replace("_lag_seconds) > 60", "_lag_seconds) > 90"))

    tested = promtool("test", "rules", tmp_path / "alerts_test.yaml")

    assert 1 == tested.returncode
    assert "CancelWorkerOutboxLag" in tested.stdout + tested.stderr


def test_selectors_are_found_among_functions_words_and_times() -> None:
    expression = 'sum by (why) (rate(a_total{x="y"}[5m])) > 14.4 * 0.01 and on (b) max(c) unless d or up{job="z"} == 0'

    assert {'a_total{x="y"}', "c", "d", 'up{job="z"}'} == selectors(expression)


@pytest.fixture
def prometheus(deployment: Deployment, shop: str, tmp_path: Path) -> Iterator[Prometheus]:
    """One that scrapes two workers, which have cancelled an order."""
    part("prometheus")
    with deployment.ledger.begin() as db:
        producers.add(db, "oms-a", by="Bea", connections=[shop])
    workers = [deployment.start_worker(), deployment.start_worker()]
    for worker in workers:
        worker.wait_for_line("health.listening")
    deployment.trackstar.add_order(shop, "o-1")
    deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30)
    ports = [int(worker.told("health.listening")["port"]) for worker in workers]
    with Prometheus(tmp_path, ports, ALERTS) as server:
        deployment.wait_until(lambda: 2 == len(server.query("cancel_worker_backlog{state='pending'}")), "both scrapes")
        yield server


def test_every_alert_names_only_series_that_two_real_workers_show(prometheus: Prometheus) -> None:
    assert [1, 1] == [float(each["value"][1]) for each in prometheus.query("up")]
    assert NAMES == [each["name"] for group in prometheus.ask("rules")["groups"] for each in group["rules"]]
    unknown = {
        f"{rule['alert']}: {selector}"
        for rule in RULES
        for selector in selectors(rule["expr"])
        if not prometheus.ask("series", **{"match[]": selector})
    }

    assert set() == unknown
    assert {} == prometheus.firing()


def test_every_query_of_the_dashboard_is_answered_and_names_only_series_that_two_real_workers_show(
    prometheus: Prometheus, deployment: Deployment, shop: str
) -> None:
    deployment.client.enqueue(shop, "nobody-knows-it")
    failed = 'http_client_request_duration_seconds_count{error_type!=""}'
    deployment.wait_until(lambda: prometheus.query(failed), "a request that fails")
    known = {"job": JOB, "connection": ".+", "__rate_interval": "10s", "__range": "1m"}
    unknown = set()
    for panel, expression in queries(BOARD):
        asked = with_variables(expression, known)
        prometheus.query(asked)
        unknown |= {
            f"{panel['title']}: {selector}"
            for selector in selectors(asked)
            if not prometheus.ask("series", **{"match[]": selector})
        }

    assert set() == unknown


def test_the_choices_of_the_dashboard_are_labels_of_series_that_two_real_workers_show(
    prometheus: Prometheus, shop: str
) -> None:
    asked = [each["definition"] for each in BOARD["templating"]["list"] if each["type"] == "query"]
    found = [re.fullmatch(r"label_values\((\w+), (\w+)\)", each) for each in asked]

    assert [{JOB}, {shop}] == [
        {each[one[2]] for each in prometheus.ask("series", **{"match[]": one[1]})} for one in found if one
    ]


def test_an_alert_fires_when_its_thing_happens_and_not_before(prometheus: Prometheus, deployment: Deployment) -> None:
    assert {} == prometheus.firing()
    deployment.redis.xadd(INBOX, {"job": "no json"})
    deployment.wait_until(prometheus.firing, "the alert")

    assert {"CancelWorkerDeadLetters"} == set(prometheus.firing())
    fired = prometheus.firing()["CancelWorkerDeadLetters"]
    assert ("not_json", "warning") == (fired["labels"]["reason"], fired["labels"]["severity"])
    assert "not_json" in fired["annotations"]["summary"]
