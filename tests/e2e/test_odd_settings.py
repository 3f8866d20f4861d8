"""Whole workers with settings as people have them: odd addresses, replaced keys, any user; refused in one sentence."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet
from harness.commands import run
from harness.deployment import CELERY, token_of
from harness.parts import needs, open_folder
from harness.truth import record_id

from worker.client import CancelClient
from worker.dev.sandbox import Sandbox
from worker.ledger import connections
from worker.ledger.vault import TokenVault, of_connection

if TYPE_CHECKING:
    from harness.deployment import Deployment

PROGRAM = str(Path(sys.executable).with_name("cancel-worker"))
OTHER_KEY = Fernet.generate_key().decode()

pytestmark = pytest.mark.deployment(ledgers=("sqlite",))


@pytest.mark.parametrize("command", [CELERY, (PROGRAM, "run")], ids=["celery", "cancel-worker"])
@pytest.mark.parametrize("words", ["?db=3&protocol=2&health_check_interval=10", "/5?socket_timeout=5&client_name=w"])
def test_a_worker_works_on_the_database_that_the_address_names(
    deployment: Deployment, shop: str, command: tuple[str, ...], words: str
) -> None:
    url = deployment.redis_url.removesuffix("/0") + words
    deployment.start_worker(command=command, REDIS_URL=f'"{url}"\n').wait_until_ready()
    deployment.trackstar.add_order(shop, "o-1")
    with closing(CancelClient(url, deployment.database_url)) as client:
        ended = client.wait(client.enqueue(shop, "o-1"), 30)

    assert "succeeded" == ended.status
    assert 0 == deployment.redis.dbsize()  # of the database that it does not name


def test_a_replaced_key_stands_in_nobodys_way(deployment: Deployment, shop: str) -> None:
    """B15: the token of the settings is encrypted anew; other connections, old and new, go on."""
    deployment.trackstar.connect(connections.DEFAULT, "the-token")
    with deployment.ledger.begin() as db:
        connections.add(db, connections.DEFAULT, TokenVault([OTHER_KEY]).encrypt("an-older-token"))
    deployment.start_worker(TRACKSTAR_ACCESS_TOKEN="the-token")
    for name in (shop, connections.DEFAULT):
        deployment.trackstar.add_order(name, "o-1")
    ids = [deployment.client.enqueue(name, "o-1") for name in (shop, connections.DEFAULT)]

    assert ["succeeded"] * 2 == [deployment.client.wait(each, 30).status for each in ids]
    with deployment.ledger.connect() as db:
        kept = connections.encrypted_tokens(db)[connections.DEFAULT]
    assert "the-token" == TokenVault([deployment.credential_key]).decrypt(kept)


def test_a_rekey_waits_until_each_running_worker_knows_the_new_key(deployment: Deployment, shop: str) -> None:
    old = deployment.credential_key
    worker = deployment.start_worker()
    worker.wait_until_ready()
    owner = worker.told("worker.started")["owner"]
    deployment.wait_until(lambda: deployment.redis.exists(f"cancellations:keys:{owner}"), "what it knows")
    deployment.env["CREDENTIAL_KEYS"] = f"{OTHER_KEY},{old}"
    code, said = run(deployment, "connections", "rekey")

    assert (2, True) == (code, f"{owner} would read no token any more" in said.replace("\n", " "))
    assert token_of(shop) == kept_token(deployment, shop, old)

    assert 0 == worker.stop()
    deployment.start_worker().wait_until_consuming()

    assert (0, "1 token is encrypted with the first key.\n") == run(deployment, "connections", "rekey")
    assert token_of(shop) == kept_token(deployment, shop, OTHER_KEY)
    deployment.trackstar.add_order(shop, "o-1")
    assert "succeeded" == deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30).status


def test_a_rekey_is_forced_where_a_person_knows_better(deployment: Deployment, shop: str) -> None:
    deployment.redis.xgroup_create("cancellations:inbox", "ledger", mkstream=True)
    deployment.redis.xgroup_createconsumer("cancellations:inbox", "ledger", "a worker of an older release")
    refused, said = run(deployment, "connections", "rekey")
    forced, _ = run(deployment, "connections", "rekey", "--force")

    assert (2, 0) == (refused, forced)
    assert "a worker of an older release would read no token any more" in said.replace("\n", " ")
    assert token_of(shop) == kept_token(deployment, shop, deployment.credential_key)


def kept_token(deployment: Deployment, name: str, key: str) -> str:
    with deployment.ledger.connect() as db:
        return TokenVault([key]).decrypt(connections.encrypted_tokens(db)[name], of_connection(name))


@pytest.mark.parametrize(("user", "group"), [(12_345, 0), (12_345, 54_321), (10_001, 10_001)])
def test_a_worker_runs_as_any_user_without_a_home_or_a_folder_to_write(
    deployment: Deployment, shop: str, user: int, group: int
) -> None:
    """B22: and nobody is warned of root."""
    needs(os.geteuid() == 0 and shutil.which("setpriv") is not None, "start a process as another user")
    with open_folder("cancel-worker-any-user-") as folder:
        ledger = folder / "ledger.sqlite3"
        with closing(sqlite3.connect(deployment.database_url.removeprefix("sqlite:///"))) as db:
            db.execute("VACUUM INTO ?", (str(ledger),))
        os.chown(folder, user, group)
        os.chown(ledger, user, group)
        url = f"sqlite:///{ledger}"
        # To read is not what is tried here: the interpreter may lie in the home of root.
        reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--no-new-privs")
        become = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *reads)
        # Nor may it count coverage: the data belong to whoever runs the tests.
        nowhere = ("env", "--unset=HOME", "--unset=COVERAGE_PROCESS_CONFIG", "--chdir=/")
        worker = deployment.start_worker(command=(*become, *nowhere, PROGRAM, "run"), DATABASE_URL=url)
        worker.wait_until_consuming()
        deployment.trackstar.add_order(shop, "o-1")
        with closing(CancelClient(deployment.redis_url, url)) as client:
            ended = client.wait(client.enqueue(shop, "o-1"), 30)

        assert ("succeeded", 0) == (ended.status, worker.stop())
        assert not [word for word in ("Warning", "superuser", "root", "Traceback") if word in worker.output]


def test_celery_counts_no_requests(deployment: Deployment) -> None:
    worker = deployment.start_worker(CONCURRENCY="7")
    worker.wait_until_consuming()

    assert 7 == worker.told("worker.started")["concurrency"]
    assert "(solo)" not in worker.output


@pytest.mark.parametrize("command", [CELERY, (PROGRAM, "run"), (PROGRAM, "doctor")], ids=["celery", "run", "doctor"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://:Zq9/Zq9@127.0.0.1:1/0"),
        ("REDIS_URL", "redis://:1/Zq9@127.0.0.1:1/0"),
        ("REDIS_URL", "rediss://127.0.0.1:1/0?ssl_cert_reqs=none"),
        ("DATABASE_URL", "postgresql://ann:one@two:Zq9@127.0.0.1/orders"),
        ("TRACKSTAR_API_KEY", "Zq9\u2026"),
        ("TRACKSTAR_BASE_URL", "trackstar.example"),
        ("SENTRY_DSN", "https://sentry.io/1"),
        ("CREDENTIAL_KEYS", "Zq9"),
        ("HEALTH_PORT", "tcp://10.0.0.7:8080"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence_with_the_settings_name(
    deployment: Deployment, command: tuple[str, ...], name: str, value: str
) -> None:
    done = subprocess.run(
        command, env={**deployment.env, name: value}, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr

    assert done.returncode in {1, 2}
    assert name in said
    assert not [word for word in ("Traceback", "Zq9", "Zq9/Zq9") if word in said]


def test_no_password_is_in_what_a_worker_and_the_commands_say(deployment: Deployment, shop: str) -> None:
    """The server refuses it: everyone has a reason to name it."""
    with Sandbox("key") as other:
        odd = {
            "REDIS_URL": deployment.redis_url.replace("redis://", "redis://nobody:of%2Fredis@"),
            "HTTPS_PROXY": "http://ann:of-the-proxy@127.0.0.1:1",
            "TRACKSTAR_BASE_URL": other.url,
        }
        worker = deployment.start_worker(**odd)
        worker.wait_for_line("Cannot connect")
        deployment.env.update(odd)
        said = worker.output + "".join(
            run(deployment, *words)[1] for words in (("doctor",), ("enqueue", "o-1", "-c", shop), ("list",))
        )

    assert "Redis refuses the user or the password of REDIS_URL" in said
    assert "Trackstar answers 401" in said
    assert not [secret for secret in ("of%2Fredis", "of/redis", "of-the-proxy") if secret in said]
    assert deployment.client.get(record_id("o-1")) is None
