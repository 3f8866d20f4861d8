"""The promises of the image and of the compose file, read from the files: there need be no Docker here."""

import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from worker.settings import LEASE_MARGIN_SECONDS, Settings

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|AUTH|DATABASE_URL")
REQUIRED = re.compile(r"\$\{(\w+):\?(?P<message>[^}]+)\}")


class Instruction(NamedTuple):
    stage: int
    word: str
    rest: str


def read_dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    found: list[Instruction] = []
    stage = -1
    for line in filter(str.strip, logical):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(stage, word, rest.strip()))
    return found


DOCKERFILE = read_dockerfile()
LAST_STAGE = DOCKERFILE[-1].stage
COMPOSE = yaml.safe_load((ROOT / "ops" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def in_final_image(word: str) -> list[str]:
    return [found.rest for found in DOCKERFILE if found.stage == LAST_STAGE and found.word == word]


def pip_commands() -> list[str]:
    runs = [found.rest for found in DOCKERFILE if found.word == "RUN"]
    return [part.strip() for run in runs for part in run.split("&&") if re.search(r"\bpip\b", part)]


def locked_requirements(lock: Path) -> list[str]:
    joined = lock.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def secrets_of(service: str) -> dict[str, str | None]:
    environment = SERVICES[service].get("environment", {})
    return {name: value for name, value in environment.items() if SECRET.search(name)}


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, duration
    return int(match[1] or 0) * 60 + int(match[2] or 0)


# The image


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    *_, user = in_final_image("USER")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_user_of_the_image_has_a_name_because_celery_takes_a_nameless_group_for_root() -> None:
    *_, user = in_final_image("USER")
    uid, gid = user.split(":")
    runs = " ".join(in_final_image("RUN"))

    assert f"groupadd --gid {gid} " in runs
    assert f"useradd --uid {uid} --gid {gid} " in runs


def test_the_migrations_are_inside_the_image() -> None:
    assert "migrations migrations" in in_final_image("COPY")


def test_the_package_in_the_image_brings_the_migrations_that_fit_its_code() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied_before_the_build = [found.rest for found in DOCKERFILE if found.word == "COPY" and found.stage < LAST_STAGE]

    assert "worker/_migrations" == wheel["force-include"]["migrations"]
    assert "migrations migrations" in copied_before_the_build


def test_the_worker_is_process_one_and_gets_the_signal_itself() -> None:
    assert [["cancel-worker"]] == [json.loads(rest) for rest in in_final_image("ENTRYPOINT")]
    assert [["run"]] == [json.loads(rest) for rest in in_final_image("CMD")]
    assert ["SIGTERM"] == in_final_image("STOPSIGNAL")


def test_the_image_says_whether_it_is_healthy_without_a_shell() -> None:
    (check,) = in_final_image("HEALTHCHECK")

    assert ["cancel-worker", "health"] == json.loads(check.partition("CMD ")[2])


def test_the_final_stage_installs_nothing() -> None:
    assert not [run for run in in_final_image("RUN") if re.search(r"\b(pip|apt-get|apt|curl)\b", run)]


def test_every_pip_command_checks_hashes_or_fetches_nothing() -> None:
    assert pip_commands()
    for command in pip_commands():
        if "--require-hashes" in command:
            # A source archive would fetch its build tools without a hash.
            assert "--only-binary=:all:" in command
        else:
            assert "--no-index" in command
            assert "--no-deps" in command


def test_the_image_installs_the_lock_of_the_run_and_builds_with_the_lock_of_the_build() -> None:
    into_venv = [command for command in pip_commands() if command.startswith("/opt/venv/")]
    thrown_away = [command for command in pip_commands() if not command.startswith("/opt/venv/")]

    assert any("-r requirements/run.lock" in command for command in into_venv)
    assert any("-r requirements/build.lock" in command for command in thrown_away)
    assert not any("build.lock" in command or "dev.lock" in command for command in into_venv)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_has_one_version_and_a_hash(lock: Path) -> None:
    requirements = locked_requirements(lock)

    assert requirements
    for requirement in requirements:
        assert re.match(r"[\w.\[\],-]+==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_lock_names_a_package_index(lock: Path) -> None:
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", lock.read_text())


def test_the_lock_of_the_build_holds_what_the_project_is_built_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {re.split(r"[<>=!~\[; ]", wanted)[0] for wanted in project["build-system"]["requires"]}
    locked = {line.split("==")[0] for line in locked_requirements(ROOT / "requirements" / "build.lock")}

    assert needed
    assert needed <= locked


def test_no_secret_is_baked_into_the_image() -> None:
    settings = " ".join(found.rest for found in DOCKERFILE if found.word in {"ARG", "ENV"})

    assert not SECRET.search(settings)


def test_only_what_is_named_reaches_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for found in DOCKERFILE
        if found.word == "COPY" and not found.rest.startswith("--from")
        for source in found.rest.split()[:-1]
    }

    assert "*" == rules[0]
    assert allowed == {re.sub(r"^requirements/.*", "requirements/*.lock", source) for source in copied}


# The compose file


def test_redis_writes_to_disk_and_never_drops_a_job() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert "redis-server" == command[0]
    assert {"--appendonly": "yes", "--appendfsync": "everysec", "--maxmemory-policy": "noeviction"} == options


@pytest.mark.parametrize(("service", "directory"), [("redis", "/data"), ("postgres", "/var/lib/postgresql/data")])
def test_what_is_stored_outlives_its_container(service: str, directory: str) -> None:
    (volume,) = SERVICES[service]["volumes"]
    name, _, mounted_at = volume.partition(":")

    assert name in COMPOSE["volumes"]
    assert mounted_at == directory


def test_the_worker_waits_for_the_migration_and_for_healthy_stores() -> None:
    waits = {name: how["condition"] for name, how in SERVICES["worker"]["depends_on"].items()}

    assert {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "redis": "service_healthy",
    } == waits


def test_the_migration_waits_for_the_database_and_runs_once() -> None:
    migrate = SERVICES["migrate"]

    assert ["migrate"] == migrate["command"]
    assert "service_healthy" == migrate["depends_on"]["postgres"]["condition"]
    assert "no" == migrate["restart"]


def test_whatever_others_wait_for_says_when_it_is_healthy() -> None:
    awaited = {
        name
        for service in SERVICES.values()
        for name, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }

    assert {"redis", "postgres"} == awaited
    for name in awaited:
        assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_a_worker_that_is_told_to_stop_has_time_to_finish_its_requests_and_to_record_them() -> None:
    grace = seconds(SERVICES["worker"]["stop_grace_period"])
    limits = [Settings.model_fields[f"{part}_timeout_seconds"].default for part in ("connect", "request")]
    cancel_and_read_back = 2 * sum(limits)

    assert grace > cancel_and_read_back + LEASE_MARGIN_SECONDS


def test_no_time_limit_of_the_worker_is_set_behind_the_back_of_its_grace() -> None:
    environment = SERVICES["worker"]["environment"]

    assert not {name: value for name, value in environment.items() if name.endswith("_SECONDS") and value is not None}


def test_flower_asks_for_a_password_and_listens_on_this_machine_only() -> None:
    flower = SERVICES["flower"]

    assert ["celery", "-A", "worker", "flower"] == flower["entrypoint"]
    assert REQUIRED.fullmatch(flower["environment"]["FLOWER_BASIC_AUTH"])
    assert "FLOWER_UNAUTHENTICATED_API" not in flower["environment"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])


def test_only_the_pages_for_people_are_reachable_and_from_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert {"flower", "grafana", "prometheus"} == set(ports)
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)


@pytest.mark.parametrize("service", ["migrate", "worker", "flower"])
def test_our_own_services_run_the_image_of_this_project(service: str) -> None:
    assert "trackstar-cancel-worker" == SERVICES[service]["image"]
    assert ROOT == (ROOT / "ops" / SERVICES[service]["build"]["context"]).resolve()


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_no_secret_has_a_default_value(service: str) -> None:
    for name, value in secrets_of(service).items():
        # Without a value the name is passed on where it is set: no default either.
        assert value is None or REQUIRED.search(value), name


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("postgres", "POSTGRES_PASSWORD"),
        ("migrate", "DATABASE_URL"),
        ("worker", "DATABASE_URL"),
        ("worker", "TRACKSTAR_API_KEY"),
        ("worker", "CREDENTIAL_KEYS"),
        ("flower", "FLOWER_BASIC_AUTH"),
        ("grafana", "GF_SECURITY_ADMIN_PASSWORD"),
        ("grafana", "LEDGER_PASSWORD"),
    ],
)
def test_a_missing_secret_stops_the_start_and_says_what_to_set(service: str, name: str) -> None:
    required = REQUIRED.search(secrets_of(service)[name] or "")

    assert required
    assert f"set {required[1]} to " in required["message"]


def test_only_the_worker_sees_the_secrets_of_trackstar() -> None:
    trackstar = {"TRACKSTAR_API_KEY", "TRACKSTAR_ACCESS_TOKEN", "CREDENTIAL_KEYS"}

    assert {"worker"} == {name for name in SERVICES if trackstar & set(SERVICES[name].get("environment", {}))}


def test_no_part_of_the_image_is_taken_from_latest() -> None:
    assert {"redis:7", "postgres:16", "prom/prometheus:v3.5.0", "grafana/grafana:12.1.0"} == {
        service["image"] for service in SERVICES.values() if "build" not in service
    }
    assert {"python:3.12-slim"} == {found.rest.split()[0] for found in DOCKERFILE if found.word == "FROM"}
