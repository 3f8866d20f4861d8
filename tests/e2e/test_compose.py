"""The compose file, run: each service's own command in a container as the file describes it, and one job through all.

There is no engine here: `harness.containers` makes users, rights, mounts and networks with what Linux has. Grafana is
in no package that the tests bring: in its place psql asks the ledger.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from harness import compose
from harness.certificates import Tls
from harness.compose import Container
from harness.containers import HERE, Machine, Running, wait_for
from harness.parts import open_folder, part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = yaml.safe_load(compose.FILE.read_text())
MEMBERS: dict[str, list[str]] = {name: given["networks"] for name, given in TEXT["services"].items()}
# Who is not of the file: Trackstar outside, somebody at a browser of this machine, an OMS in the network of Redis.
STRANGERS = {"trackstar": ["egress"], "person": ["ingress"], "oms": ["broker"]}
MEMBERS |= STRANGERS
REPLICAS = {name: 3 if name == "worker" else 1 for name in MEMBERS}
API_KEY = "api-key-of-the-sandbox"
TOKEN = "token-of-the-shop"
GET = "import sys, requests; print(requests.get(sys.argv[1], timeout=10).text)"


class Service:
    """The whole file on one machine."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.secrets = folder / "secrets"
        self.tls = folder / "tls"
        command: list[str | Path] = ["/bin/sh", compose.FOLDER / "secrets.sh", self.secrets]
        subprocess.run(command, input=API_KEY, text=True, check=True, stdout=subprocess.DEVNULL)
        self.machine = Machine(folder, [*TEXT["networks"]], REPLICAS)
        self.address = self.machine.address("trackstar-0", "egress")
        self.tls.mkdir()
        Tls(self.tls, self.address)
        for each in self.tls.iterdir():
            each.chmod(0o644)

    def container(self, service: str) -> Container:
        if service in STRANGERS:
            return stranger(service)
        return compose.container(service, self.secrets, self.environment)

    def start(self, service: str, number: int = 0, **how: Any) -> Running:
        return self.machine.start(self.container(service), MEMBERS, number, **how)

    def once(self, service: str, *words: str, typed: str = "") -> str:
        """Run a command to its good end, as `docker compose run --rm` does; return what it said."""
        running = self.start(service, words=words or None)
        code = running.finish(typed.encode())
        assert 0 == code, running.output
        return running.output

    def up(self) -> None:
        """Start everything as `depends_on` has it."""
        certificate = ("/tls", self.tls)
        outside = [str(HERE / "trackstar_outside.py"), "8443", API_KEY, TOKEN, "/tls/server.pem"]
        self.start("trackstar", words=outside, binds=[certificate]).wait_for_line("listens")
        for name in ("redis", "postgres"):
            self.start(name).wait_until_healthy()
        for name in ("migrate", "grants"):
            self.once(name)
        self.environment |= {"TRACKSTAR_BASE_URL": f"https://{self.address}:8443", "CA_BUNDLE": "/tls/authority.pem"}
        for number in range(REPLICAS["worker"]):
            self.start("worker", number, binds=[certificate])
        for name in ("flower", "prometheus"):
            self.start(name)
        for name in ("worker-0", "worker-1", "worker-2", "flower-0", "prometheus-0"):
            self.running(name).wait_until_healthy()

    def page(self, url: str) -> Any:
        """Return what a page answers to somebody at this machine."""
        return json.loads(self.once("person", "-c", GET, url))

    def running(self, name: str) -> Running:
        return self.machine.running[name]

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def close(self) -> None:
        self.machine.close()


def stranger(name: str) -> Container:
    return Container(
        service=name,
        image="trackstar-cancel-worker",
        user="10001:10001",
        entrypoint=["python"],
        command=[],
        environment={},
        networks=STRANGERS[name],
        secrets={},
        mounts={},
        volumes={},
        tmpfs={"/tmp": "mode=1777"},  # noqa: S108 - a place in a container
        memory=1024,
        pids=100,
    )


@pytest.fixture(scope="module", params=["redis:7", "valkey/valkey:9"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The whole file, started in the order that it states, and Trackstar outside."""
    part("prometheus")
    with open_folder("cancel-worker-compose-") as folder:
        made = Service(folder, {"REDIS_IMAGE": request.param})
        try:
            made.up()
            yield made
        finally:
            made.close()


JOB = "import sys, redis; redis.Redis.from_url(sys.argv[1]).xadd('cancellations:inbox', {'job': sys.argv[2]})"
# Where each server listens.
SERVERS = {"redis": 6379, "postgres": 5432, "worker": 8080, "flower": 5555, "prometheus": 9090, "trackstar": 8443}
REACHED = """
import json, socket, sys
found = []
for name, address, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        continue
    found.append(name)
print(json.dumps(found))
"""
WRITABLE = """
import json, os, sys, tempfile
found = []
for folder in {"/" + name for name in os.listdir("/")} | {"/", "/app", "/etc", "/run/secrets", *sys.argv[1:]}:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        continue
    found.append(folder)
print(json.dumps(found))
"""
SQL = "PGPASSWORD=$(cat /run/secrets/postgres_reader) exec psql -h postgres -U $LEDGER_USER -d cancel_worker -Atc '{}'"
ACL_LOG = "REDISCLI_AUTH=$(cat /run/secrets/redis_admin) redis-cli --user admin acl log"


@pytest.mark.timeout(300)
def test_one_job_goes_through_every_service_as_the_file_starts_them(service: Service) -> None:
    service.once("operator", "connections", "add", "shop-1", typed=TOKEN + "\n")
    producer = f"redis://producer:{service.secret('redis_producer')}@redis:6379/0"
    service.once("oms", "-c", JOB, producer, json.dumps({"connection_id": "shop-1", "order_id": "o-1"}))
    wait_for(lambda: "cancelled" == shown(service)["verdict"], "the verdict", service.running("worker-0"))

    assert ["succeeded", 1] == [shown(service)[name] for name in ("status", "attempts")]
    flower = service.running("flower-0")
    wait_for(lambda: {"SUCCESS"} == {each["state"] for each in flower_tasks(service).values()}, "its page", flower)
    wait_for(lambda: {"up"} == {each["health"] for each in scraped(service)}, "each scrape")
    assert 3 == len({each["scrapeUrl"] for each in scraped(service)})
    assert [(0, "cancelled"), (1, "")] == [
        as_grafana(service, f"SELECT {what}") for what in ("verdict FROM cancellation_outcomes_v1", "* FROM documents")
    ]
    assert [] == red_to_doctor(service)
    assert 0 == passwords_anew(service)
    assert "" == service.running("redis-0").execute("sh", "-c", ACL_LOG).stdout.strip()


@pytest.mark.timeout(300)
def test_each_container_has_the_user_rights_folders_networks_and_limits_of_the_file(service: Service) -> None:
    lasting = [each for each in service.machine.running.values() if each.alive and "trackstar" != each.given.service]

    assert {"redis", "postgres", "worker", "flower", "prometheus"} == {each.given.service for each in lasting}
    for each in lasting:
        given = each.given
        assert {given.user.split(":")[0], "0000000000000000", "1"} == facts(each), given.service
        assert {*given.tmpfs, *given.volumes} == set(
            asked(each, WRITABLE, *given.tmpfs, *given.volumes, *given.mounts)
        ), given.service
        assert reachable(given.service) == set(asked(each, REACHED, json.dumps(addresses(service)))), given.service
        memory, threads = each.used()
        assert given.memory / 2 > memory, given.service
        assert given.pids / 2 > threads, given.service


@pytest.mark.timeout(300)
def test_each_container_that_is_told_to_stop_ends_in_good_order(service: Service) -> None:
    order = ["worker-0", "worker-1", "worker-2", "flower-0", "prometheus-0", "postgres-0", "redis-0"]

    assert dict.fromkeys(order, 0) == {name: service.running(name).stop() for name in order}


def shown(service: Service) -> dict[str, Any]:
    running = service.start("operator", words=["show", "o-1", "--json"])
    found: dict[str, Any] = json.loads(running.output) if 0 == running.finish() else {"verdict": None}
    return found


def red_to_doctor(service: Service) -> list[dict[str, Any]]:
    """Return what `doctor` finds wrong from inside of a worker."""
    answered = service.running("worker-0").execute("cancel-worker", "doctor", "--json")
    findings = json.loads(answered.stdout)["findings"]
    return [each for each in findings if "red" == each["colour"]]


def passwords_anew(service: Service) -> int:
    """Set the passwords of the files once more, as after a change of one; return the exit code."""
    socket = "PGHOST=/var/run/postgresql"  # as the image's psql has it by itself
    return service.running("postgres-0").execute("env", socket, "/docker-entrypoint-initdb.d/init.sh").returncode


def flower_tasks(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.page(f"http://{service.secret('flower_basic_auth')}@flower:5555/api/tasks")
    return found


def scraped(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.page("http://prometheus:9090/api/v1/targets")["data"]["activeTargets"]
    return found


def as_grafana(service: Service, query: str) -> tuple[int, str]:
    """Ask the ledger from where Grafana stands, with what it is given; return psql's exit code and its answer."""
    given = replace(service.container("grafana"), image="postgres:16", entrypoint=["sh", "-c"])
    running = service.machine.start(given, MEMBERS, words=[SQL.format(query)], stderr=subprocess.DEVNULL)
    return running.finish(), running.output.strip()


def facts(running: Running) -> set[str]:
    """Return the user of its first process, the rights that it could ever have, and whether it can get no new ones."""
    status = running.execute("cat", "/proc/1/status").stdout
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {word for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs") for word in lines[name].split()}


def asked(running: Running, program: str, *words: str) -> list[str]:
    done = running.execute("python", "-c", program, *words)
    assert 0 == done.returncode, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def addresses(service: Service) -> list[tuple[str, str, int]]:
    """Return every address of every server, whatever the networks of who asks."""
    return [
        (name, service.machine.address(f"{name}-0", network), port)
        for name, port in SERVERS.items()
        for network in MEMBERS[name]
    ]


def reachable(name: str) -> set[str]:
    return {server for server in SERVERS if set(MEMBERS[server]) & set(MEMBERS[name])}
