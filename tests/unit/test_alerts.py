"""The alerts of Prometheus and the papers about them say the same: rules, runbook, list of series, compose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.test_documents import anchors, table_rows

from worker.telemetry.metrics import GAUGES, Metrics

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "ops" / "runbook.md"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "ops" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
SERVICES = yaml.safe_load((ROOT / "ops" / "compose.yaml").read_text())["services"]
SCRAPES = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_urgent_it_is_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url", "dashboard_url"} == set(rule["annotations"])
    assert ("ops/runbook.md", rule["alert"].lower()) == (page, anchor)
    assert anchor in anchors(RUNBOOK)


def test_the_runbook_has_each_alert_once_with_its_severity_and_what_it_means_to_check_and_to_do() -> None:
    found = re.findall(
        r"^### (CancelWorker\w+)\n\n\* \*\*Means\*\* \((\w+)\): .+\n\* \*\*Check\*\*: .+\n\* \*\*Do\*\*: .+$",
        RUNBOOK.read_text(),
        re.MULTILINE,
    )

    assert [(rule["alert"], rule["labels"]["severity"]) for rule in RULES] == found
    assert len(found) == RUNBOOK.read_text().count("\n### CancelWorker")


def test_the_list_of_series_is_that_of_the_code() -> None:
    stated = {
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for names, kind, labels, _ in table_rows((ROOT / "docs" / "metrics.md").read_text(), "| series | kind |")
        for name in re.findall(r"`(\w+)`", names)
    }
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", Metrics().render().decode(), re.MULTILINE))
    labelled = {
        getattr(each, "_name", "") + ("_total" if each._type == "counter" else ""): (each._type, each._labelnames)
        for each in vars(Metrics()).values()
        if hasattr(each, "_labelnames")
    }

    assert {name for name in kinds if not name.startswith("process_")} == set(labelled)
    assert stated == {(name, *what) for name, what in labelled.items()} | {
        (name, "gauge", labels) for name, (labels, _) in GAUGES.items()
    }


def test_the_prometheus_of_the_compose_file_scrapes_the_port_of_the_image_by_the_job_that_the_alerts_name() -> None:
    (scrape,) = SCRAPES
    (found,) = scrape["dns_sd_configs"]

    assert f"HEALTH_PORT={found['port']}" in (ROOT / "Dockerfile").read_text()
    assert ["worker"] == found["names"]
    assert {scrape["job_name"]} == {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yaml" in SERVICES["prometheus"]["command"]
