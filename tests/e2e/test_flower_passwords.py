"""Flower starts with a password in every way of giving one, and in none without (B16); a worker may have its name."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import requests
from harness.deployment import CELERY
from harness.flower_server import AUTH, flower, open_flower

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment

PROVIDER = {
    "FLOWER_AUTH": "ann@example.com",
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GitHubLoginHandler",
    "FLOWER_OAUTH2_KEY": "key",
    "FLOWER_OAUTH2_SECRET": "of-the-provider",
    "FLOWER_OAUTH2_REDIRECT_URI": "http://127.0.0.1/login",
}

pytestmark = pytest.mark.deployment(ledgers=("sqlite",))


WAYS = ("FLOWER_BASIC_AUTH", "FLOWER_BASIC_AUTH_FILE", "--basic_auth", "--basic-auth", "conf")


@pytest.mark.parametrize("way", WAYS)
def test_a_password_given_in_any_way_is_asked_for(deployment: Deployment, tmp_path: Path, way: str) -> None:
    words: list[str] = []
    environment: dict[str, str] = {}
    if way == "FLOWER_BASIC_AUTH":
        environment[way] = '"ann:of-flower"\n'
    elif way == "FLOWER_BASIC_AUTH_FILE":
        (tmp_path / "password").write_text("\ufeffann:of-flower\r\n")
        environment[way] = str(tmp_path / "password")
    elif way == "conf":
        (tmp_path / "flowerconfig.py").write_text('basic_auth = ["ann:of-flower"]\n')
    else:
        words.append(f"{way}=ann:of-flower")
    with flower(deployment, tmp_path, *words, **environment) as started:
        deployment.wait_until(started.listens, "Flower")

        assert [401, 401, 200] == [started.status(auth=auth) for auth in (None, ("ann", "x"), ("ann", "of-flower"))]
        assert 200 == started.status("/broker", ("ann", "of-flower"))
    assert "of-flower" not in started.output


def test_who_knows_the_password_sends_no_task_and_no_command(deployment: Deployment, tmp_path: Path) -> None:
    commands = [f"worker/{each}/worker-1@cancel" for each in ("shutdown", "pool/restart", "queue/add-consumer")]
    tasks = ["task/send-task/worker.attempt_batch", "task/apply/worker.attempt_batch", "task/revoke/some-id"]
    with open_flower(deployment, tmp_path) as started:
        answers = {
            path: requests.post(f"{started.url}/api/{path}", json={"args": []}, auth=AUTH, timeout=10).status_code
            for path in [*commands, *tasks]
        }

    assert dict.fromkeys([*commands, *tasks], 403) == answers


def test_who_signs_in_at_a_provider_is_sent_there(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of-the-provider\n")
    in_a_file = {"FLOWER_OAUTH2_SECRET_FILE": str(tmp_path / "secret")}
    given = {name: value for name, value in PROVIDER.items() if name != "FLOWER_OAUTH2_SECRET"}
    with flower(deployment, tmp_path, "--debug", **given, **in_a_file) as started:
        deployment.wait_until(started.listens, "Flower")

        assert 302 == started.status()
    assert "of-the-provider" not in started.output


STOPPED_WHILE_LOGGING = """
import os, signal, threading
from logging import FileHandler, getLogger  # the name "logging" is an option of this file

class Stopped(FileHandler):
    def acquire(self):
        super().acquire()
        if os.path.exists("stop") and threading.current_thread() is threading.main_thread():
            os.remove("stop")
            os.kill(os.getpid(), signal.SIGTERM)

getLogger().addHandler(Stopped("stopped.log"))
"""


def test_it_ends_though_the_signal_comes_while_it_writes_its_log(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "flowerconfig.py").write_text(STOPPED_WHILE_LOGGING)
    asks_for_long = "--inspect_timeout=5000"  # milliseconds: its threads have something to log when they are done
    with flower(deployment, tmp_path, "--debug", asks_for_long, FLOWER_BASIC_AUTH="ann:of-flower") as started:
        deployment.wait_until(started.listens, "Flower")
        (tmp_path / "stop").touch()
        with suppress(requests.RequestException):  # it may end before it answers
            requests.get(f"{started.url}/healthcheck", timeout=1)
        started.process.wait(20)

        assert (0, False) == (started.process.returncode, (tmp_path / "stop").exists())


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param(["--auth_provider=X"], {}, id="a provider alone"),
        pytest.param([], {"FLOWER_AUTH_PROVIDER": PROVIDER["FLOWER_AUTH_PROVIDER"]}, id="a provider in a variable"),
        pytest.param(["--auth=.*@example.com"], {}, id="a pattern alone"),
        pytest.param(["--auth=.*"], PROVIDER | {"FLOWER_AUTH": ""}, id="everybody"),
        pytest.param([], {**PROVIDER, "FLOWER_OAUTH2_SECRET": ""}, id="a provider without its secret"),
        pytest.param([], {"FLOWER_BASIC_AUTH": "ann"}, id="a user alone"),
        pytest.param([], {"FLOWER_BASIC_AUTH": "ann:"}, id="an empty password"),
        pytest.param(["--basic_auth="], {}, id="an empty option"),
        pytest.param([], {"FLOWER_BASIC_AUTH": "''"}, id="quotes around nothing"),
        pytest.param([], {"FLOWER_UNAUTHENTICATED_API": "true"}, id="an open API"),
        pytest.param([], {"FLOWER_BASIC_AUTH_FILE": "/nowhere/password"}, id="a file that is not there"),
    ],
)
def test_without_a_password_it_does_not_start(
    deployment: Deployment, tmp_path: Path, words: list[str], environment: dict[str, str]
) -> None:
    with flower(deployment, tmp_path, *words, **environment) as refused:
        assert 1 == refused.process.wait(30)
    assert "auth" in refused.output.lower()
    assert "Traceback" not in refused.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLOWER_PORT", "tcp://10.0.0.7:5555"),
        ("FLOWER_MAX_TASKS", "1_000"),
        ("FLOWER_READ_ONLY", "perhaps"),
        ("REDIS_URL", "redis://:Zq9/Zq9@127.0.0.1/0"),
    ],
)
def test_a_setting_that_flower_cannot_read_is_a_sentence(
    deployment: Deployment, tmp_path: Path, name: str, value: str
) -> None:
    with flower(deployment, tmp_path, FLOWER_BASIC_AUTH="ann:of-flower", **{name: value}) as refused:
        assert 1 == refused.process.wait(30)
    assert name in refused.output
    assert not [word for word in ("Traceback", "Zq9", "Zq9/Zq9") if word in refused.output]


@pytest.mark.parametrize("name", ["flower", "flower@%h", "flower-1@flower"])
def test_a_worker_may_be_named_flower(deployment: Deployment, name: str) -> None:
    worker = deployment.start_worker(command=(*CELERY, "-n", name), FLOWER_PORT="tcp://10.0.0.7:5555")
    worker.wait_until_consuming()

    assert 0 == worker.stop()
