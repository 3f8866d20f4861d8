"""Debian's Prometheus on a port of its own: it scrapes a few times a second, and is asked by its API."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import requests
import yaml

from harness.parts import lasting_port, part

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START_SECONDS = 30.0
SCRAPE = "500ms"
JOB = "cancel-worker"  # as the alerts call it


class Prometheus:
    """One server, with these rules, that scrapes these ports of this machine."""

    def __init__(self, folder: Path, ports: Iterable[int], rules: Path) -> None:
        self.port = lasting_port()
        self.log = folder / "prometheus.log"
        self._config = folder / "prometheus.yaml"
        config = {
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            ],
        }
        self._config.write_text(yaml.safe_dump(config))
        self._command = [
            part("prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            self._process = process = subprocess.Popen(self._command, stdout=output, stderr=output)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).ok:
                    return self
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "Prometheus does not answer."
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ask(self, what: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; an error of the query fails the test, in its words."""
        answer = requests.get(f"http://127.0.0.1:{self.port}/api/v1/{what}", params=parameters, timeout=10).json()
        assert "success" == answer["status"], answer.get("error")
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def firing(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire, by their name."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"]: each for each in alerts if "firing" == each["state"]}


_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")


def selectors(expression: str) -> set[str]:
    """Return the selectors of an expression that `promtool` or a server has parsed: a name, perhaps with matchers.

    What is followed by a bracket is a function, and a unit of time follows a number.
    """
    bare = _GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", "", expression))
    return {
        match[0].strip()
        for match in _SELECTOR.finditer(bare)
        if match[1] not in _WORDS and not bare[match.end() :].lstrip().startswith("(")
    }
