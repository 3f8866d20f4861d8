"""What tests ask of ops/kubernetes: its resources by kind, the pods they make, and whether a custom resource is valid.

Started as a program it writes the PrometheusRule from ops/prometheus/alerts.yaml. Knows manifests, no cluster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it ships no types

from harness.kustomize import Resource, resolve

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops" / "kubernetes"
EXAMPLE = FOLDER / "overlays" / "example"
SCHEMAS = Path(__file__).parent / "schemas"
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yaml"
RULE = FOLDER / "monitoring" / "alerts.yaml"
HEAD = """\
# Generated from ops/prometheus/alerts.yaml: change that, then PYTHONPATH=tests .venv/bin/python -m harness.kubernetes
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cancel-worker
  labels:
    app.kubernetes.io/name: cancel-worker
    app.kubernetes.io/component: worker
    app.kubernetes.io/part-of: trackstar-cancel-worker
spec:
"""


def rule_of(alerts: str) -> str:
    """Return the manifest of a PrometheusRule with the groups of a file of Prometheus."""
    groups = alerts[alerts.index("groups:") :].splitlines(keepends=True)
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in groups)


class Manifests:
    """The resources of a kustomization."""

    def __init__(self, folder: Path = EXAMPLE) -> None:
        self.all = resolve(folder)

    def of(self, kind: str) -> dict[str, Resource]:
        return {each["metadata"]["name"]: each for each in self.all if each["kind"] == kind}

    def one(self, kind: str, name: str) -> Resource:
        return self.of(kind)[name]

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """The templates of pods, by the name of what makes them."""
        return {
            each["metadata"]["name"]: each["spec"]["template"]
            for each in self.all
            if "template" in each.get("spec", {})
        }

    def environment(self, pod: str) -> dict[str, str]:
        """What the container of this pod finds in its environment."""
        (container,) = self.pods[pod]["spec"]["containers"]
        maps = [self.one("ConfigMap", each["configMapRef"]["name"])["data"] for each in container.get("envFrom", [])]
        stated = {each["name"]: each["value"] for each in container["env"]}
        return {name: value for each in (*maps, stated) for name, value in each.items()}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a label selector matches. Knows `matchLabels` and the operator In."""
    assert {"matchLabels", "matchExpressions"} >= set(selector)
    assert {"In"} >= {each["operator"] for each in selector.get("matchExpressions", [])}
    listed = all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
    return listed and selector.get("matchLabels", {}).items() <= labels.items()


def problems_of_custom(resource: Resource) -> list[str]:
    """Return what the schema of its own project says against a custom resource; a field it does not know is one."""
    schema = json.loads((SCHEMAS / f"{resource['kind']}.json").read_text())
    errors = Draft202012Validator(_strict(schema)).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in errors]


def _strict(schema: Any, name: str = "") -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Below `properties` each key is a name and no keyword.
    inner = {key: _strict(each, key if name != "properties" else "") for key, each in schema.items()}
    closed = "properties" in schema and name != "properties" and not schema.get("x-kubernetes-preserve-unknown-fields")
    return {"additionalProperties": False, **inner} if closed else inner


if __name__ == "__main__":
    RULE.write_text(rule_of(ALERTS.read_text()))
