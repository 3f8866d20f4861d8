"""What the README tells of monitoring agrees with the series, the alerts and their runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = (ROOT / "README.md").read_text().partition("\n## Monitoring\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(cancel_worker_\w+)` \| (.+?) \| (.+) \|$", MONITORING, re.MULTILINE)
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "ops" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def alerts_of(worry: str) -> dict[str, dict[str, Any]]:
    """Return what a cell says, each with the alert that it leads to."""
    by_anchor = {rule["alert"].lower(): rule for rule in RULES if "alert" in rule}
    return {said: by_anchor[anchor] for said, anchor in re.findall(r"\[([^\]]+)\]\(ops/runbook\.md#(\w+)\)", worry)}


def test_there_are_five_series_to_watch() -> None:
    assert 5 == len({series for series, _, _ in ROWS})


@pytest.mark.parametrize(("series", "tells", "worry"), ROWS, ids=[series for series, _, _ in ROWS])
def test_a_series_to_watch_is_one_of_ours_and_worries_as_its_alerts_do(series: str, tells: str, worry: str) -> None:
    del tells
    assert f"`{series}`" in (ROOT / "docs" / "metrics.md").read_text()
    assert alerts_of(worry)
    for said, rule in alerts_of(worry).items():
        condition = f"{rule['expr']} {rule.get('for', '')}"
        assert series in condition
        limits = re.findall(r"\d[\d.]*m?", said) + re.findall(r"`(\w+)`", said)
        assert [] == [limit for limit in limits if not re.search(rf"\b{re.escape(limit)}\b", condition)]
