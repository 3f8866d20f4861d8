"""The promises of the compose file and of the secrets that it uses, read from the files."""

from __future__ import annotations

import base64
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import compose

from worker.settings import LEASE_MARGIN_SECONDS, Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = yaml.safe_load(compose.FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = TEXT["services"]
NETWORKS: dict[str, dict[str, Any] | None] = TEXT["networks"]
OURS = ["migrate", "worker", "flower", "operator"]
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|AUTH|SECRET|_URL|DSN|PROXY")
every_service = pytest.mark.parametrize("service", sorted(SERVICES))


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, duration
    return int(match[1] or 0) * 60 + int(match[2] or 0)


def waits_of(service: str) -> dict[str, str]:
    return {name: how["condition"] for name, how in SERVICES[service].get("depends_on", {}).items()}


def test_compose_accepts_the_file() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", compose.FILE],
        check=False,
        capture_output=True,
        text=True,
    )

    assert 0 == checked.returncode, checked.stdout + checked.stderr


def test_every_part_of_the_service_is_there_and_none_is_taken_from_latest() -> None:
    assert {
        "redis": "${REDIS_IMAGE:-redis:7}",
        "postgres": "postgres:16",
        "grants": "postgres:16",
        "prometheus": "prom/prometheus:v3.5.0",
        "grafana": "grafana/grafana:12.1.0",
        **dict.fromkeys(OURS, "trackstar-cancel-worker"),
    } == {name: service["image"] for name, service in SERVICES.items()}


@pytest.mark.parametrize("service", OURS)
def test_our_own_services_run_the_image_of_this_project_as_its_user(service: str) -> None:
    assert ROOT == (ROOT / "ops" / SERVICES[service]["build"]["context"]).resolve()
    assert f"USER {SERVICES[service]['user']}\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("service", OURS)
def test_a_build_can_be_told_what_it_says_of_itself(service: str) -> None:
    assert {"REVISION": None, "VERSION": None, "CREATED": None} == SERVICES[service]["build"]["args"]


# ---- what a container may do


@every_service
def test_no_container_can_change_its_files_become_another_or_have_more_than_its_part(service: str) -> None:
    given = SERVICES[service]
    uid, _ = given["user"].split(":")
    limits = given["deploy"]["resources"]["limits"]

    assert (True, ["ALL"], ["no-new-privileges:true"]) == (
        given["read_only"],
        given["cap_drop"],
        given["security_opt"],
    )
    assert 0 < int(uid)
    assert 0 < compose.megabytes(limits["memory"]) <= 2048
    assert 0 < limits["pids"] <= 256
    assert "local" == given["logging"]["driver"]
    assert not {"container_name", "privileged", "network_mode", "pid", "ipc"} & set(given)


@every_service
def test_what_lasts_starts_again_and_says_how_it_is(service: str) -> None:
    once = {"migrate", "grants", "operator"}
    given = SERVICES[service]

    assert ("no" if service in once else "unless-stopped") == given["restart"]
    # The worker's check is the image's.
    assert (service in once) == given.get("healthcheck", {}).get("disable", False)
    assert "worker" == service or "healthcheck" in given


@every_service
def test_each_file_that_is_mounted_is_there_and_read_only(service: str) -> None:
    mounts = [each.split(":") for each in SERVICES[service].get("volumes", ())]
    files = [each for each in mounts if each[0].startswith(".")]

    assert [] == [each for each in files if each[2:] != ["ro"] or not (compose.FOLDER / each[0]).exists()]
    assert {each[0] for each in mounts if each not in files} <= set(TEXT["volumes"])


@pytest.mark.parametrize(
    ("service", "directory"),
    [
        ("redis", "/data"),
        ("postgres", "/var/lib/postgresql/data"),
        ("prometheus", "/prometheus"),
        ("grafana", "/var/lib/grafana"),
    ],
)
def test_what_is_stored_outlives_its_container(service: str, directory: str) -> None:
    assert f"{service}-data:{directory}" in SERVICES[service]["volumes"]


# ---- who reaches whom


def test_the_stores_and_the_metrics_are_on_networks_that_lead_nowhere_else() -> None:
    assert {"broker", "ledger", "monitoring"} == {
        name for name, how in NETWORKS.items() if how and how.get("internal")
    }
    assert ["broker"] == SERVICES["redis"]["networks"]
    assert ["ledger"] == SERVICES["postgres"]["networks"]


def test_only_the_worker_may_go_out() -> None:
    assert {"worker"} == {name for name, service in SERVICES.items() if "egress" in service["networks"]}
    unmasked = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
    assert unmasked == NETWORKS["ingress"]
    assert {"egress", "ingress"} == {name for name, how in NETWORKS.items() if not (how and how.get("internal"))}


def test_each_service_is_on_the_networks_of_what_it_talks_to_and_on_no_other() -> None:
    assert {
        "redis": {"broker"},
        "postgres": {"ledger"},
        "migrate": {"ledger"},
        "grants": {"ledger"},
        "worker": {"broker", "ledger", "monitoring", "egress"},
        "operator": {"broker", "ledger"},
        "flower": {"broker", "ingress"},
        "prometheus": {"monitoring", "ingress"},
        "grafana": {"monitoring", "ledger", "ingress"},
    } == {name: set(service["networks"]) for name, service in SERVICES.items()}


# ---- the order of a start, and of an end


def test_each_service_waits_for_what_it_needs() -> None:
    healthy, done = "service_healthy", "service_completed_successfully"

    assert {
        "redis": {},
        "postgres": {},
        "migrate": {"postgres": healthy},
        "grants": {"migrate": done},
        "worker": {"redis": healthy, "postgres": healthy, "grants": done},
        "operator": {"grants": done},
        "flower": {"redis": healthy},
        "prometheus": {},
        "grafana": {},
    } == {name: waits_of(name) for name in SERVICES}


def test_redis_writes_to_disk_and_never_drops_a_job() -> None:
    command = compose.services()["redis"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))

    assert ["sh", "/etc/redis/start.sh"] == SERVICES["redis"]["entrypoint"]
    assert {
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--dir": "/data",
        "--maxmemory-policy": "noeviction",
        "--maxmemory": "512mb",
    } == options


def test_redis_may_have_more_than_twice_the_memory_that_it_may_fill() -> None:
    command = compose.services()["redis"]["command"]
    (filled,) = re.findall(r"^(\d+)mb$", command[command.index("--maxmemory") + 1])

    assert compose.megabytes(SERVICES["redis"]["deploy"]["resources"]["limits"]["memory"]) > 2 * int(filled)


def test_a_worker_that_is_told_to_stop_has_time_to_finish_its_requests_and_to_record_them() -> None:
    grace = seconds(SERVICES["worker"]["stop_grace_period"])
    limits = [Settings.model_fields[f"{part}_timeout_seconds"].default for part in ("connect", "request")]
    cancel_and_read_back = 2 * sum(limits)

    assert grace > cancel_and_read_back + LEASE_MARGIN_SECONDS


def test_no_time_limit_of_the_worker_is_set_behind_the_back_of_its_grace() -> None:
    environment = SERVICES["worker"]["environment"]

    assert not {name: value for name, value in environment.items() if name.endswith("_SECONDS") and value is not None}


def test_each_setting_reaches_the_worker_and_what_is_no_secret_the_commands() -> None:
    of_the_image = {"HEALTH_PORT", "HEALTH_ADDRESS", "REVISION"}
    settings = {name.upper() for name in Settings.model_fields} - of_the_image
    reaching = {name: {each.removesuffix("_FILE") for each in SERVICES[name]["environment"]} for name in OURS}
    of_requests = {"CA_BUNDLE", "TRACKSTAR_API_KEY"}  # which no command of `operator` sends

    assert set() == settings - reaching["worker"]
    assert {name for name in settings if not SECRET.search(name)} - of_requests <= reaching["operator"]


def test_there_may_be_any_number_of_workers() -> None:
    worker = SERVICES["worker"]

    assert 1 < worker["deploy"]["replicas"]
    assert not {"ports", "container_name", "volumes"} & set(worker)


def test_flower_asks_for_a_password() -> None:
    flower = SERVICES["flower"]

    assert ["celery", "-A", "worker", "flower"] == flower["entrypoint"]
    assert "/run/secrets/flower_basic_auth" == flower["environment"]["FLOWER_BASIC_AUTH_FILE"]
    assert "FLOWER_UNAUTHENTICATED_API" not in flower["environment"]


# ---- secrets


@every_service
def test_a_secret_is_a_file_or_is_passed_on_and_has_no_default(service: str) -> None:
    given = SERVICES[service]
    named = {name: value for name, value in given.get("environment", {}).items() if SECRET.search(name)}
    files = {f"/run/secrets/{name}" for name in given.get("secrets", ())}

    assert set() == {value for value in named.values() if value is not None} - files
    assert [] == [name for name, value in named.items() if value and not name.endswith("_FILE")]


def test_each_service_sees_the_secrets_that_it_needs_and_no_other() -> None:
    assert {
        "redis": {f"redis_{user}" for user in ("admin", "producer", "events", "worker", "flower")},
        "postgres": {f"postgres_{role}" for role in ("superuser", "owner", "worker", "operator", "reader")},
        "migrate": {"owner_database_url"},
        "grants": {"postgres_owner"},
        "worker": {"worker_redis_url", "worker_database_url", "trackstar_api_key", "credential_keys"},
        "operator": {"operator_redis_url", "operator_database_url", "credential_keys"},
        "flower": {"flower_redis_url", "flower_basic_auth"},
        "prometheus": set(),
        "grafana": {"grafana_admin", "postgres_reader"},
    } == {name: set(service.get("secrets", ())) for name, service in SERVICES.items()}


def make_secrets(folder: Path, typed: str = "api-key\n") -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = ["sh", compose.FOLDER / "secrets.sh", folder]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {each.name: each.read_text().removesuffix("\n") for each in folder.iterdir()}


def test_the_script_makes_every_secret_that_the_file_names_and_no_other(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")

    assert 0 == made.returncode, made.stderr
    assert {name: {"file": f"./secrets/{name}"} for name in contents(tmp_path / "secrets")} == TEXT["secrets"]
    assert ["secrets"] == [each.name for each in tmp_path.iterdir()]


def test_nobody_else_of_the_machine_reaches_them_and_any_user_of_a_container_reads_its_own(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets")
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "secrets").iterdir()}

    assert 0o700 == stat.S_IMODE((tmp_path / "secrets").stat().st_mode)
    assert {0o444} == modes


def test_each_is_a_long_random_word_of_its_own_and_an_address_holds_the_word_of_its_user(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets")
    make_secrets(tmp_path / "others")
    made, others = contents(tmp_path / "secrets"), contents(tmp_path / "others")
    words = [made[name] for name in made if name.startswith(("redis_", "postgres_", "grafana_"))]

    assert {"trackstar_api_key"} == {name for name in made if made[name] == others[name]}
    assert 11 == len(set(words)) == len([each for each in words if re.fullmatch(r"[0-9a-f]{64}", each)])
    assert f"redis://worker:{made['redis_worker']}@redis:6379/0" == made["worker_redis_url"]
    assert f"redis://flower:{made['redis_flower']}@redis:6379/0" == made["flower_redis_url"]
    assert f"redis://admin:{made['redis_admin']}@redis:6379/0" == made["operator_redis_url"]
    for role in ("owner", "worker", "operator"):
        address = f"postgresql://cancel_{role}:{made[f'postgres_{role}']}@postgres:5432/cancel_worker"
        assert address == made[f"{role}_database_url"]
    assert 32 == len(base64.urlsafe_b64decode(made["credential_keys"]))
    assert re.fullmatch(r"flower:[0-9a-f]{64}", made["flower_basic_auth"])


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets")
    before = contents(tmp_path / "secrets")
    again = make_secrets(tmp_path / "secrets")

    assert 1 == again.returncode
    assert "is there already: nothing was changed" in again.stderr
    assert before == contents(tmp_path / "secrets")


def test_without_an_api_key_nothing_is_made(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets", typed="")

    assert (1, []) == (made.returncode, list(tmp_path.iterdir()))
    assert "No API key was given" in made.stderr


def test_no_secret_is_told(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")

    assert [] == [name for name, value in contents(tmp_path / "secrets").items() if value in made.stdout + made.stderr]


def test_git_takes_no_secret() -> None:
    assert {"ops/secrets/", "ops/secrets.new/"} <= set((ROOT / ".gitignore").read_text().splitlines())
