"""The dashboards of this project, and what Grafana makes of their queries before it sends them.

Knows the files' shape, variables and macros as Grafana documents them; asks no Prometheus and no database.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FOLDER = Path(__file__).parents[2] / "ops" / "grafana"
Dashboard = dict[str, Any]
Panel = dict[str, Any]

BUCKET_SECONDS = 300  # of $__interval
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
_MACRO = re.compile(r"\$(__\w+)\(([^)]*)\)")


def dashboard(uid: str) -> Dashboard:
    """Return one dashboard, whose file is called like it."""
    found: Dashboard = json.loads((FOLDER / "dashboards" / f"{uid}.json").read_text())
    return found


def rows(board: Dashboard) -> list[list[Panel]]:
    """Return the panels above the first row, and those of each row."""
    folded = [each["panels"] for each in board["panels"] if each["type"] == "row"]
    return [[each for each in board["panels"] if each["type"] != "row"], *folded]


def panels(board: Dashboard) -> Iterator[Panel]:
    """Yield all panels, without rows."""
    for row in rows(board):
        yield from row


def queries(board: Dashboard) -> Iterator[tuple[Panel, str]]:
    """Yield each query with its panel."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel, target.get("expr") or target["rawSql"]


def with_variables(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of variables, `$name` or `${name:format}`; KeyError for one that nobody knows."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def with_macros(sql: str, hours: float = 24) -> str:
    """Write the macros of the PostgreSQL data source out, over the last so many hours.

    https://grafana.com/docs/grafana/latest/datasources/postgres/query-editor/#macros
    """
    to = datetime.now(UTC) + timedelta(minutes=1)
    since = to - timedelta(hours=hours)

    def write(found: re.Match[str]) -> str:
        arguments = [each.strip() for each in found[2].split(",")]
        if found[1] == "__timeFilter":
            return f"{arguments[0]} BETWEEN '{since.isoformat()}' AND '{to.isoformat()}'"
        assert ("__timeGroupAlias", "$__interval") == (found[1], arguments[1]), found[0]
        return f'floor(extract(epoch from {arguments[0]})/{BUCKET_SECONDS})*{BUCKET_SECONDS} AS "time"'

    return _MACRO.sub(write, sql)
