"""The promises of ops/kubernetes, read from the files: valid, as the settings need it, and with no right too many."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from harness.kubernetes import ALERTS, EXAMPLE, FOLDER, RULE, Manifests, problems_of_custom, rule_of, selects
from harness.kustomize import UnknownFieldError, resolve
from harness.parts import part
from kubernetes_validate import utils as kubernetes
from packaging.version import Version
from typer.main import get_command

from worker.cli import app
from worker.settings import LEASE_MARGIN_SECONDS, SECRETS, Settings, load_settings, load_worker_settings
from worker.telemetry.health_server import REQUEST_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

NEWEST = sorted({each.split("-")[0] for each in kubernetes.all_versions()}, key=Version)[-3:]
MANIFESTS = Manifests()
PODS = MANIFESTS.pods
CUSTOM = ("keda.sh/", "monitoring.coreos.com/")
SECRET_VALUES = {
    "DATABASE_URL": "postgresql://cancel_worker:word@postgres/cancel_worker",
    "REDIS_URL": "redis://worker:word@redis:6379/0",
    "TRACKSTAR_API_KEY": "key",
    "CREDENTIAL_KEYS": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "FLOWER_BASIC_AUTH": "user:word",
}
# Pods that others run, as ops/kubernetes/README.md lists them.
OTHERS = {"redis", "postgres", "prometheus"}


def container_of(pod: str) -> dict[str, Any]:
    (container,) = PODS[pod]["spec"]["containers"]
    return dict(container)


def is_custom(resource: dict[str, Any]) -> bool:
    return bool(resource["apiVersion"].startswith(CUSTOM))


def name_of(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}-{resource['metadata']['name']}"


def start_settings(pod: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as the container of this pod finds them, its secrets in files."""
    for name, value in MANIFESTS.environment(pod).items():
        if name.endswith("_FILE"):
            file = folder / name.removesuffix("_FILE")
            file.write_text(SECRET_VALUES[file.name])
        monkeypatch.setenv(name, str(file) if name.endswith("_FILE") else value)
    load_settings.cache_clear()
    try:
        return load_worker_settings() if pod == "cancel-worker" else load_settings()
    finally:
        load_settings.cache_clear()


def mounted_secrets(pod: str) -> dict[str, set[str]]:
    """The keys of each secret that the pod has as files."""
    volumes = [volume["secret"] for volume in PODS[pod]["spec"]["volumes"] if "secret" in volume]
    return {each["secretName"]: {item["key"] for item in each["items"]} for each in volumes}


# Valid


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize("resource", [each for each in MANIFESTS.all if not is_custom(each)], ids=name_of)
def test_each_resource_is_valid_in_the_newest_versions(resource: dict[str, Any], version: str) -> None:
    assert version == ".".join([*kubernetes.validate(resource, version, strict=True).split("."), "0"][:3])


@pytest.mark.parametrize("resource", [each for each in MANIFESTS.all if is_custom(each)], ids=name_of)
def test_each_custom_resource_is_valid_by_its_own_schema(resource: dict[str, Any]) -> None:
    assert [] == problems_of_custom(resource)


def test_a_field_that_a_custom_resource_does_not_have_is_found() -> None:
    scaler = MANIFESTS.one("ScaledObject", "cancel-worker")
    wrong = {**scaler, "spec": {**scaler["spec"], "minReplicas": 2, "triggers": [{"metadata": {}}]}}

    assert 2 == len(problems_of_custom(wrong))


def test_kubectl_makes_the_same_of_the_example() -> None:
    done = subprocess.run([part("kubectl"), "kustomize", EXAMPLE], capture_output=True, text=True, check=True)
    # Only kustomize's own name for a generated ConfigMap ends with a hash of what it holds.
    theirs = yaml.safe_load_all(re.sub(r"(cancel-worker-settings)-[a-z0-9]{10}\b", r"\1", done.stdout))

    assert by_name(MANIFESTS.all) == by_name(theirs)


def by_name(resources: Any) -> dict[tuple[str, str], Any]:
    """Order them; a line's end within an expression says nothing, and kustomize writes one more."""
    return {(each["kind"], each["metadata"]["name"]): on_one_line(each) for each in resources}


def on_one_line(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: on_one_line(each) for key, each in value.items()}
    if isinstance(value, list):
        return [on_one_line(each) for each in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def test_a_field_that_the_resolver_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: other-\n")

    with pytest.raises(UnknownFieldError, match="namePrefix"):
        resolve(tmp_path)


def test_the_alerts_are_those_of_prometheus() -> None:
    assert rule_of(ALERTS.read_text()) == RULE.read_text()


# The settings


def test_the_worker_starts_with_the_settings_of_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = start_settings("cancel-worker", tmp_path, monkeypatch)

    assert SECRET_VALUES["REDIS_URL"] == settings.redis_url
    assert SECRET_VALUES["DATABASE_URL"] == settings.database_url
    assert [SECRET_VALUES["CREDENTIAL_KEYS"]] == settings.keys
    assert 64 == settings.concurrency


@pytest.mark.parametrize("pod", ["cancel-worker", "cancel-worker-migrate"])
def test_each_variable_is_a_setting(pod: str) -> None:
    known = {name.upper() for name in Settings.model_fields}

    assert {name.removesuffix("_FILE") for name in MANIFESTS.environment(pod)} <= known


@pytest.mark.parametrize("pod", PODS)
def test_each_key_of_a_secret_is_a_file_that_a_variable_names_and_no_other(pod: str) -> None:
    (mount,) = [each for each in container_of(pod)["volumeMounts"] if each["name"] == "secrets"]
    named = {value for name, value in MANIFESTS.environment(pod).items() if name.endswith("_FILE")}
    (keys,) = mounted_secrets(pod).values()

    assert {f"{mount['mountPath']}/{key}" for key in keys} == named
    assert mount["readOnly"]


def test_no_secret_stands_in_a_manifest() -> None:
    assert {} == MANIFESTS.of("Secret")
    for pod in PODS:
        stated = {name for name in MANIFESTS.environment(pod) if not name.endswith("_FILE")}
        assert not stated & SECRET_VALUES.keys()
    for settings in MANIFESTS.of("ConfigMap").values():
        assert not settings["data"].keys() & {*SECRET_VALUES, *SECRETS}


def test_only_who_needs_it_sees_a_secret() -> None:
    assert {
        "cancel-worker-migrate": {"cancel-worker-migrate": {"DATABASE_URL"}},
        "cancel-worker": {"cancel-worker": {"DATABASE_URL", "REDIS_URL", "TRACKSTAR_API_KEY", "CREDENTIAL_KEYS"}},
        "cancel-worker-flower": {"cancel-worker-flower": {"REDIS_URL", "FLOWER_BASIC_AUTH"}},
    } == {pod: mounted_secrets(pod) for pod in PODS}


def test_the_readme_names_each_secret_with_its_keys() -> None:
    readme = (FOLDER / "README.md").read_text()
    of_scaler = MANIFESTS.one("TriggerAuthentication", "cancel-worker-scaler")["spec"]["secretTargetRef"]
    needed = [(name, key) for pod in PODS for name, keys in mounted_secrets(pod).items() for key in keys]
    needed += [(each["name"], each["key"]) for each in of_scaler]

    rows = {line.split("|")[1].strip(" `"): line for line in readme.splitlines() if line.startswith("| `")}
    for name, key in needed:
        assert f"`{key}`" in rows[name]


# Start and end


def test_a_pod_that_is_told_to_stop_has_time_for_its_longest_attempt_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = start_settings("cancel-worker", tmp_path, monkeypatch)
    grace = PODS["cancel-worker"]["spec"]["terminationGracePeriodSeconds"]

    assert grace >= 2 * settings.longest_attempt_seconds + LEASE_MARGIN_SECONDS
    assert "lifecycle" not in container_of("cancel-worker")


def test_each_command_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]

    for pod in ("cancel-worker", "cancel-worker-migrate"):
        assert "command" not in container_of(pod)  # the entry point of the image
        (word,) = container_of(pod)["args"]
        assert word in commands
    assert ["celery", "-A", "worker", "flower"] == container_of("cancel-worker-flower")["command"]


def test_probes_ask_what_the_health_server_answers_where_it_listens() -> None:
    worker = container_of("cancel-worker")
    ports = {each["name"]: str(each["containerPort"]) for each in worker["ports"]}
    probes = {kind: worker[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}

    assert {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"} == {
        kind: probe["httpGet"]["path"] for kind, probe in probes.items()
    }
    for probe in probes.values():
        assert MANIFESTS.environment("cancel-worker")["HEALTH_PORT"] == ports[probe["httpGet"]["port"]]
        assert probe["timeoutSeconds"] <= REQUEST_SECONDS


def test_a_roll_out_takes_no_worker_away_before_another_is_ready() -> None:
    spec = MANIFESTS.one("Deployment", "cancel-worker")["spec"]

    assert {"maxUnavailable": 0, "maxSurge": 1} == spec["strategy"]["rollingUpdate"]
    assert "replicas" not in spec  # of the scaler


# Rights


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_keeps_the_restricted_profile(pod: str) -> None:
    spec, container = PODS[pod]["spec"], container_of(pod)
    rights = container["securityContext"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert {"type": "RuntimeDefault"} == spec["securityContext"]["seccompProfile"]
    assert (False, True) == (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"])
    assert {"drop": ["ALL"]} == rights["capabilities"]
    assert {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}.isdisjoint(spec)
    assert (False, False) == (spec["automountServiceAccountToken"], spec["enableServiceLinks"])
    assert {"secret"} == {key for volume in spec["volumes"] for key in volume if key != "name"}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_says_what_it_needs_and_runs_an_image_of_the_overlay(pod: str) -> None:
    resources = container_of(pod)["resources"]

    assert {"cpu", "memory"} == resources["requests"].keys()
    assert {"memory"} == resources["limits"].keys()
    assert "registry.example.com/trackstar-cancel-worker:0.2.0" == container_of(pod)["image"]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_may_reach_what_it_needs_and_nothing_else(pod: str) -> None:
    expected = {
        "cancel-worker": {"dns", "to-postgres", "to-redis", "to-the-internet", "from-prometheus"},
        "cancel-worker-migrate": {"dns", "to-postgres"},
        "cancel-worker-flower": {"dns", "to-redis"},
    }
    labels = PODS[pod]["metadata"]["labels"]
    policies = MANIFESTS.of("NetworkPolicy")
    matching = {name for name, each in policies.items() if selects(each["spec"]["podSelector"], labels)}

    assert {f"cancel-worker-{each}" for each in {"default-deny", *expected[pod]}} == matching


def test_what_is_not_allowed_by_a_policy_is_denied() -> None:
    policies = {name.removeprefix("cancel-worker-"): p["spec"] for name, p in MANIFESTS.of("NetworkPolicy").items()}
    deny = policies.pop("default-deny")
    coming = {name for name, spec in policies.items() if "ingress" in spec}

    assert ["Ingress", "Egress"] == deny["policyTypes"]
    assert {"ingress", "egress"}.isdisjoint(deny)
    assert {"from-prometheus"} == coming
    for spec in policies.values():
        (rule,) = spec.get("ingress") or spec["egress"]
        assert rule["ports"]
        assert rule.get("from") or rule["to"]


def test_peers_are_pods_that_the_readme_names() -> None:
    rules = [*MANIFESTS.of("NetworkPolicy").values(), *resolve_policies_of_the_base()]
    peers = {
        labels["matchLabels"].get("app.kubernetes.io/name", "kube-dns")
        for policy in rules
        for way in ("ingress", "egress")
        for rule in policy["spec"].get(way, [])
        for peer in (*rule.get("from", []), *rule.get("to", []))
        if (labels := peer.get("podSelector"))
    }

    assert {"kube-dns", *OTHERS} == peers
    for name in OTHERS:
        assert f"`app.kubernetes.io/name: {name}`" in (FOLDER / "README.md").read_text()


def resolve_policies_of_the_base() -> list[dict[str, Any]]:
    return list(Manifests(FOLDER / "base").of("NetworkPolicy").values())


# Selectors


@pytest.mark.parametrize(
    ("kind", "name", "pod"),
    [
        ("Deployment", "cancel-worker", "cancel-worker"),
        ("Deployment", "cancel-worker-flower", "cancel-worker-flower"),
        ("PodDisruptionBudget", "cancel-worker", "cancel-worker"),
        ("PodMonitor", "cancel-worker", "cancel-worker"),
        ("Service", "cancel-worker-flower", "cancel-worker-flower"),
    ],
)
def test_a_selector_finds_the_pods_that_it_means_and_no_others(kind: str, name: str, pod: str) -> None:
    selector = MANIFESTS.one(kind, name)["spec"]["selector"]
    stated = {"matchLabels": selector} if kind == "Service" else selector

    assert [pod] == [each for each, template in PODS.items() if selects(stated, template["metadata"]["labels"])]


def test_workers_are_spread_over_zones_and_nodes() -> None:
    pod = PODS["cancel-worker"]
    spread = pod["spec"]["topologySpreadConstraints"]

    assert ["topology.kubernetes.io/zone", "kubernetes.io/hostname"] == [each["topologyKey"] for each in spread]
    assert all(selects(each["labelSelector"], pod["metadata"]["labels"]) for each in spread)


def test_a_disruption_leaves_a_worker() -> None:
    budget = MANIFESTS.one("PodDisruptionBudget", "cancel-worker")["spec"]
    fewest = MANIFESTS.one("ScaledObject", "cancel-worker")["spec"]["minReplicaCount"]

    assert 0 < budget["maxUnavailable"] < fewest
    assert "AlwaysAllow" == budget["unhealthyPodEvictionPolicy"]


def test_prometheus_gives_the_workers_the_job_that_the_alerts_name() -> None:
    monitor = MANIFESTS.one("PodMonitor", "cancel-worker")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]

    assert 'up{job="cancel-worker"}' in RULE.read_text()
    assert "cancel-worker" == PODS["cancel-worker"]["metadata"]["labels"][monitor["jobLabel"]]
    assert endpoint["port"] in {each["name"] for each in container_of("cancel-worker")["ports"]}


# The scaler


def test_the_scaler_scales_the_workers_and_takes_its_address_from_a_secret() -> None:
    scaler = MANIFESTS.one("ScaledObject", "cancel-worker")["spec"]
    (trigger,) = scaler["triggers"]
    secrets = MANIFESTS.one("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]

    assert scaler["scaleTargetRef"]["name"] in MANIFESTS.of("Deployment")
    assert "postgresql" == trigger["type"]
    assert {"query", "targetQueryValue"} == trigger["metadata"].keys()
    assert [("connection", "DATABASE_URL")] == [(each["parameter"], each["key"]) for each in secrets]


def test_workers_are_not_sent_away_before_an_attempt_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = start_settings("cancel-worker", tmp_path, monkeypatch)
    scaler = MANIFESTS.one("ScaledObject", "cancel-worker")["spec"]
    down = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]

    assert scaler["cooldownPeriod"] > settings.longest_attempt_seconds
    assert down["stabilizationWindowSeconds"] > settings.longest_attempt_seconds
    assert 1 < scaler["minReplicaCount"] < scaler["maxReplicaCount"]
