"""The first thing a newcomer runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import IO

import pytest
import requests

DEMO = [sys.executable, "-c", "from worker.cli import main; main()", "demo"]


def read_to(output: IO[str], pattern: str) -> str:
    """Return what the first line that fits has at the place of the group."""
    for line in output:
        if found := re.search(pattern, line):
            return found[1]
    pytest.fail(f"the demo has ended, and no line was {pattern}")


def answer(url: str, demo: subprocess.Popen[str]) -> requests.Response:
    """Ask for a page until it answers, for as long as the demo runs."""
    while demo.poll() is None:
        try:
            return requests.get(url, timeout=5)
        except requests.ConnectionError:  # the worker is still starting
            time.sleep(0.1)
    pytest.fail(f"the demo has ended, and {url} never answered")


def test_the_demo_ends_by_itself_with_every_order_as_told() -> None:
    environment = {**os.environ, "KEEP": "", "HEALTH_PORT": "1", "HEALTH_ADDRESS": "192.0.2.1"}  # of another worker
    with subprocess.Popen(DEMO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        assert demo.stdout
        flower = read_to(demo.stdout, r"^Flower: (http://127\.0\.0\.1:\d+)/tasks ")
        metrics = read_to(demo.stdout, r"^Metrics: (http://127\.0\.0\.1:\d+/metrics) ")
        receiver = read_to(demo.stdout, r"^Webhooks: to (http://127\.0\.0\.1:\d+/\w+) ")
        forged = requests.post(receiver, data=b'{"data": {}}', timeout=5)
        asked = requests.get(f"{flower}/healthcheck", timeout=5), answer(metrics, demo)
        said, _ = demo.communicate(timeout=90)

    assert 400 == forged.status_code
    assert [200, 200] == [each.status_code for each in asked]
    assert "cancel_worker_build_info" in asked[1].text
    assert 0 == demo.returncode, said
    assert "All 14 orders ended as told." in said
    money = Counter(re.findall(r"^Webhook: (\S+) of A-\d\d, signature verified$", said, re.MULTILINE))
    assert {"refund.released": 10, "refund.refused": 3} == money
    assert re.search(r"A-13 +cancelled by somebody else.* rejected +cancelled +read_back .* yes, as of ", said)
    assert re.search(r"A-04 +already shipped +rejected +not_cancelled +read_back .* no, as of ", said)
    assert re.search(r"A-14 +refused by the warehouse.* rejected +unknown .* not yet, known by ", said)
