"""Both dashboards of Grafana and what brings them there: shape, words, links, provisioning, the compose file."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.grafana import FOLDER, dashboard, panels, queries, rows
from unit.test_documents import anchors, table_rows

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "ops" / "compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
METRICS, LEDGER = dashboard("cancel-worker"), dashboard("cancel-worker-sql")
BOARDS = [METRICS, LEDGER]
PANELS = [(board, panel) for board in BOARDS for panel in panels(board)]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "ops" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
SOURCES = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "cancel-worker.yaml").read_text())["datasources"]
(PROVIDER,) = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "cancel-worker.yaml").read_text())["providers"]

every_dashboard = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
every_panel = pytest.mark.parametrize(
    ("board", "panel"), PANELS, ids=[f"{board['uid']}-{panel['id']}" for board, panel in PANELS]
)


def variable(board: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in board["templating"]["list"] if each["name"] == name]
    return dict(found)


# ---- shape


def test_there_are_two_dashboards_each_in_a_file_of_its_name() -> None:
    assert {f"{board['uid']}.json" for board in BOARDS} == {path.name for path in (FOLDER / "dashboards").iterdir()}


@every_dashboard
def test_a_dashboard_has_the_form_that_grafana_reads(board: dict[str, Any]) -> None:
    ids = [each["id"] for each in board["panels"]] + [each["id"] for row in rows(board)[1:] for each in row]

    assert (39, True) == (board["schemaVersion"], board["editable"])
    assert len(ids) == len(set(ids))
    assert {"datasource", "connection", "runbook"} <= {each["name"] for each in board["templating"]["list"]}
    assert board["description"]


def test_the_one_on_prometheus_is_asked_for_a_job() -> None:
    assert "label_values(cancel_worker_build_info, job)" == variable(METRICS, "job")["definition"]


@every_dashboard
def test_a_dashboard_begins_with_figures_in_one_line_and_all_else_is_folded(board: dict[str, Any]) -> None:
    figures, folded = rows(board)[0], [each for each in board["panels"] if each["type"] == "row"]

    assert {("stat", 0)} == {(each["type"], each["gridPos"]["y"]) for each in figures}
    assert {True} == {each["collapsed"] for each in folded}
    assert list(range(4, 4 + len(folded))) == [each["gridPos"]["y"] for each in folded]


@every_dashboard
def test_no_panel_lies_over_another_or_beyond_the_page(board: dict[str, Any]) -> None:
    for row in rows(board):
        places = [each["gridPos"] for each in row]
        assert [] == [
            (one, other)
            for one, other in combinations(places, 2)
            if abs(one["x"] + one["w"] / 2 - other["x"] - other["w"] / 2) < (one["w"] + other["w"]) / 2
            and abs(one["y"] + one["h"] / 2 - other["y"] - other["h"] / 2) < (one["h"] + other["h"]) / 2
        ]
        assert 24 >= max(each["x"] + each["w"] for each in places)


@every_panel
def test_a_panel_says_what_it_shows_in_which_unit_and_asks_the_chosen_data_source(
    board: dict[str, Any], panel: dict[str, Any]
) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert {"type": variable(board, "datasource")["query"], "uid": "${datasource}"} == panel["datasource"]
    assert [chr(ord("A") + place) for place in range(len(panel["targets"]))] == [
        each["refId"] for each in panel["targets"]
    ]


@every_panel
def test_each_link_of_a_panel_leads_to_an_alert_in_the_runbook(board: dict[str, Any], panel: dict[str, Any]) -> None:
    targets = [each["url"] for each in panel.get("links", [])]

    assert "ops/runbook.md" == variable(board, "runbook")["query"]
    assert targets == [
        "${runbook}#" + each["title"].removeprefix("Runbook: ").lower() for each in panel.get("links", [])
    ]
    assert {each.partition("#")[2] for each in targets} <= set(anchors(ROOT / "ops" / "runbook.md"))


def test_a_word_has_one_colour_wherever_it_stands() -> None:
    fixed = {
        (override["matcher"]["options"], found["value"]["fixedColor"])
        for _, panel in PANELS
        for override in panel["fieldConfig"]["overrides"]
        for found in override["properties"]
        if found["id"] == "color"
    }

    assert len(fixed) == len({word for word, _ in fixed})
    assert {("cancelled", "green"), ("not_cancelled", "blue"), ("unknown", "orange"), ("expired", "red")} <= fixed


# ---- queries


def test_the_dashboard_shows_each_series_that_is_documented() -> None:
    stated = {
        (name, kind)
        for names, kind, *_ in table_rows((ROOT / "docs" / "metrics.md").read_text(), "| series | kind |")
        for name in re.findall(r"`(\w+)`", names)
    }
    asked = " ".join(expression for _, expression in queries(METRICS))

    assert [] == sorted(
        name for name, kind in stated if not re.search(rf"\b{name}{'_bucket' * (kind == 'histogram')}\b", asked)
    )


def test_a_rate_is_over_the_interval_that_fits_the_scrapes_and_a_quantile_over_all_workers() -> None:
    windows = {found for _, expression in queries(METRICS) for found in re.findall(r"\[([^\]]+)\]", expression)}
    quantiles = [expression for _, expression in queries(METRICS) if "_bucket" in expression]
    form = r"histogram_quantile\(0\.(5|95|99), sum by \(le\) \(rate\(\w+_bucket\{[^}]*\}\[\$__rate_interval\]\)\)\)"

    assert {"$__rate_interval", "$__range"} == windows
    assert quantiles
    assert all(re.fullmatch(form, each) for each in quantiles)


def test_each_selector_is_of_the_chosen_job() -> None:
    for _, expression in queries(METRICS):
        assert len(re.findall(r"\b(?:cancel_worker|http_client|process)_\w+|\bup\b", expression)) == expression.count(
            '{job=~"$job"'
        ), expression


def test_what_is_no_error_is_the_same_for_the_alert_and_for_both_dashboards() -> None:
    (alert,) = [rule["expr"] for rule in RULES if rule["alert"] == "CancelWorkerErrorRate"]
    (words,) = re.findall(r'reason!~"([^"]+)"', alert)
    (metrics,) = [each for panel, each in queries(METRICS) if panel["title"] == "Error rate"]
    (ledger,) = [each for panel, each in queries(LEDGER) if panel["title"] == "Error rate"]

    assert f'status!="succeeded",reason!~"{words}"' in metrics
    assert f"NOT IN ({', '.join(repr(word) for word in words.split('|'))})" in ledger


def test_the_one_on_sql_reads_the_views_and_nothing_else() -> None:
    asked = [variable(LEDGER, "connection")["query"], *(query for _, query in queries(LEDGER))]
    read = re.findall(r"\b(?:FROM|JOIN) (\w+)", " ".join(asked).replace("extract(epoch FROM ", ""))

    assert {"cancellation_outcomes_v1", "attempts_v1", "connections_v1"} == set(read)


# ---- alerts


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_a_panel_that_shows_what_it_is_about_and_leads_back(rule: dict[str, Any]) -> None:
    page, _, number = rule["annotations"]["dashboard_url"].partition("?viewPanel=")
    (panel,) = [each for each in panels(METRICS) if number == str(each["id"])]
    shown = " ".join(each["expr"] for each in panel["targets"])

    assert f"d/{METRICS['uid']}" == page
    assert set(re.findall(r"\bcancel_worker_\w+", rule["expr"])) & set(re.findall(r"\bcancel_worker_\w+", shown))
    assert "${runbook}#" + rule["alert"].lower() in {each["url"] for each in panel["links"]}


# ---- how they come into Grafana


def test_grafana_finds_the_dashboards_where_compose_mounts_them() -> None:
    mounts = dict(each.split(":")[:2] for each in SERVICES["grafana"]["volumes"])

    assert PROVIDER["options"]["path"] == mounts["./grafana/dashboards"]
    assert "/etc/grafana/provisioning" == mounts["./grafana/provisioning"]
    assert ("file", False) == (PROVIDER["type"], PROVIDER["allowUiUpdates"])


def test_there_is_one_data_source_for_each_dashboard_and_it_is_a_service_of_compose() -> None:
    hosts = [re.fullmatch(r"(?:http://)?(\w+):\d+", source["url"]) for source in SOURCES]

    assert [variable(board, "datasource")["query"] for board in BOARDS] == [source["type"] for source in SOURCES]
    assert ["prometheus", "postgres"] == [found[1] for found in hosts if found]
    assert 2 == len({source["uid"] for source in SOURCES})
    assert not any(source["editable"] for source in SOURCES)


def test_the_ledger_is_asked_as_the_role_that_reads_and_its_password_stands_in_no_file_of_ours() -> None:
    source, grafana = SOURCES[1], SERVICES["grafana"]

    assert ("$LEDGER_USER", "cancel_reader") == (source["user"], grafana["environment"]["LEDGER_USER"])
    assert {"password": "$__file{/run/secrets/postgres_reader}"} == source["secureJsonData"]
    assert "postgres_reader" in grafana["secrets"]
    assert ("postgres:5432", SERVICES["postgres"]["environment"]["POSTGRES_DB"]) == (
        source["url"],
        source["jsonData"]["database"],
    )


def test_grafana_asks_for_a_password() -> None:
    grafana = SERVICES["grafana"]

    assert "/run/secrets/grafana_admin" == grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert "grafana_admin" in grafana["secrets"]
    assert not [name for name in grafana["environment"] if "ANONYMOUS" in name]
