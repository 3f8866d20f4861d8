"""The promises of the image, read from its files: there need be no Docker here."""

import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|AUTH|DATABASE_URL")


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
SERVICES = yaml.safe_load((ROOT / "ops" / "compose.yaml").read_text())["services"]
LAST_STAGE = DOCKERFILE[-1].stage


def in_final_image(word: str) -> list[str]:
    return [found.rest for found in DOCKERFILE if found.stage == LAST_STAGE and found.word == word]


def pip_commands() -> list[str]:
    runs = [found.rest for found in DOCKERFILE if found.word == "RUN"]
    return [part.strip() for run in runs for part in run.split("&&") if re.search(r"\bpip\b", part)]


def locked_requirements(lock: Path) -> list[str]:
    joined = lock.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


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


def test_no_part_of_the_image_is_taken_from_latest() -> None:
    assert {"python:3.12-slim"} == {found.rest.split()[0] for found in DOCKERFILE if found.word == "FROM"}


def test_the_labels_of_the_image_are_those_of_oci_and_say_what_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "$VERSION",
        "revision": "$REVISION",
        "created": "$CREATED",
    } == labels()


def test_what_a_label_says_of_one_build_is_an_argument_of_the_last_stage() -> None:
    stated = [rest.split("=")[0] for rest in in_final_image("ARG")]

    assert {name.removeprefix("$") for name in labels().values() if name.startswith("$")} <= set(stated)


def labels() -> dict[str, str]:
    found = [pair for rest in in_final_image("LABEL") for pair in re.findall(r'([\w.]+)="([^"]*)"', rest)]
    assert {"org.opencontainers.image"} == {name.rpartition(".")[0] for name, _ in found}
    return {name.rpartition(".")[2]: value for name, value in found}


# What the compose file lets others reach and see; the rest of it is in test_compose_file.py.


def test_only_the_pages_for_people_are_reachable_and_from_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert {"flower", "grafana", "prometheus"} == set(ports)
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
    assert all("ingress" in SERVICES[name]["networks"] for name in ports)


def test_only_the_worker_sees_the_secrets_of_trackstar() -> None:
    key = {name for name, service in SERVICES.items() if "trackstar_api_key" in service.get("secrets", ())}
    tokens = {name for name, service in SERVICES.items() if "credential_keys" in service.get("secrets", ())}
    passed_on = {
        name for name, service in SERVICES.items() if "TRACKSTAR_ACCESS_TOKEN" in service.get("environment", ())
    }

    assert {"worker"} == key == passed_on
    # Whoever adds a connection encrypts its token.
    assert {"worker", "operator"} == tokens
