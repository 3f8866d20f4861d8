"""Resolves a kustomization as `kubectl kustomize` does, as far as ops/kubernetes uses it; fails on everything else.

Knows `resources`, `namespace`, `images`, `configMapGenerator` with literals and JSON patches. Names of generated
ConfigMaps get no hash here. Knows nothing of what the resources mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Resource = dict[str, Any]
KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "namespace",
    "images",
    "configMapGenerator",
    "patches",
}


class UnknownFieldError(Exception):
    """A kustomization says what this resolver cannot follow: use less, or teach it here."""


def resolve(folder: Path) -> list[Resource]:
    """Return the resources of a folder with a kustomization.yaml. Raises UnknownFieldError."""
    stated = yaml.safe_load((folder / "kustomization.yaml").read_text())
    _only(stated, KNOWN, folder)
    found = [each for name in stated["resources"] for each in _read(folder / name)]
    for generated in stated.get("configMapGenerator", []):
        _generate(found, generated)
    for patch in stated.get("patches", []):
        _patch(found, patch)
    for container in _containers(found):
        container["image"] = _image(container["image"], stated.get("images", []))
    if namespace := stated.get("namespace"):
        for each in found:
            each["metadata"]["namespace"] = namespace
    return found


def _only(stated: dict[str, Any], known: set[str], where: Any) -> None:
    if unknown := set(stated) - known:
        raise UnknownFieldError(f"{where}: {sorted(unknown)}")


def _read(path: Path) -> list[Resource]:
    return resolve(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _generate(found: list[Resource], stated: dict[str, Any]) -> None:
    _only(stated, {"name", "literals", "behavior"}, "configMapGenerator")
    data = dict(literal.split("=", 1) for literal in stated["literals"])
    same = [each for each in found if ("ConfigMap", stated["name"]) == (each["kind"], each["metadata"]["name"])]
    if stated.get("behavior", "create") == "create":
        if same:
            raise UnknownFieldError(f"configMapGenerator: {stated['name']} is there")
        found.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": stated["name"]}, "data": dict(data)}
        )
    elif stated["behavior"] == "merge" and same:
        same[0]["data"] |= data
    else:
        raise UnknownFieldError(f"configMapGenerator: {stated}")


def _patch(found: list[Resource], stated: dict[str, Any]) -> None:
    _only(stated, {"target", "patch"}, "patches")
    target = stated["target"]
    _only(target, {"kind", "name"}, "target")
    wanted = (target["kind"], target["name"])
    matching = [each for each in found if wanted == (each["kind"], each["metadata"]["name"])]
    operations = yaml.safe_load(stated["patch"])
    if not matching or not isinstance(operations, list):
        raise UnknownFieldError(f"patches: {target} matches {len(matching)}, or this is no JSON patch")
    for operation in operations:
        for each in matching:
            _operate(each, operation)


def _operate(resource: Resource, operation: dict[str, Any]) -> None:
    _only(operation, {"op", "path", "value"}, "patch")
    *way, last = operation["path"].strip("/").replace("~1", "/").split("/")
    place: Any = resource
    for word in way:
        place = place[int(word)] if isinstance(place, list) else place[word]
    if not isinstance(place, dict) or operation["op"] not in {"add", "replace"}:
        raise UnknownFieldError(f"patch: {operation}")
    if operation["op"] == "replace" and last not in place:
        raise UnknownFieldError(f"patch: {operation['path']} is not there to be replaced")
    place[last] = operation["value"]


def _containers(found: list[Resource]) -> Iterator[dict[str, Any]]:
    for each in found:
        template = each.get("spec", {}).get("template")
        if template is not None:
            yield from template["spec"]["containers"]


def _image(name: str, stated: list[dict[str, str]]) -> str:
    for each in stated:
        _only(each, {"name", "newName", "newTag", "digest"}, "images")
        if each["name"] == name:
            named = each.get("newName", name)
            return f"{named}@{each['digest']}" if "digest" in each else f"{named}:{each['newTag']}"
    return name
