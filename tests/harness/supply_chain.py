"""What is shipped besides our own code: the bill of materials (CycloneDX) and the licences, for `make sbom`.

Knows the lock of the run and what the image is: Linux, CPython. Installs nothing and asks no index.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.markers import Marker, default_environment
from packaging.utils import canonicalize_name

from worker.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "run.lock"
BIN = Path(sys.executable).parent
MAIN = "root-component"
# A name, perhaps extras, a version, perhaps where it is needed; then its hashes.
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?==([^ ;]+)(?: ; ([^\\]+?))? \\\n(?: +--hash.*\n?)+")


class Package(NamedTuple):
    name: str
    version: str
    text: str  # of its requirement, with its hashes


def image() -> dict[str, str]:
    """Return what the markers of a lock ask for, in the image."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    system = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    python = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**system, **python, "python_version": version, "python_full_version": f"{version}.0"}


def here() -> dict[str, str]:
    """Return the same for this Python on this machine."""
    return {name: str(value) for name, value in default_environment().items()}


def locked(environment: Mapping[str, str]) -> list[Package]:
    """Return the packages of the lock that are installed in an environment, in its order."""
    return [
        Package(canonicalize_name(found[1]), found[2], found[0])
        for found in REQUIREMENT.finditer(LOCK.read_text())
        if not found[3] or Marker(found[3]).evaluate(dict(environment))
    ]


def bill_of_materials(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the CycloneDX document of the locked packages in an environment; the same each time."""
    words: list[str | Path] = [
        "--output-reproducible",
        "--short-PURLs",
        "--no-validate",
        "--pyproject",
        ROOT / "pyproject.toml",
    ]
    made = subprocess.run(
        [BIN / "cyclonedx-py", "requirements", *words, "-"],
        input="".join(package.text for package in locked(environment)),
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(made.stdout)
    # The version is in the code, and a list of requirements does not say who needs whom.
    found["metadata"]["component"]["version"] = __version__
    needed = sorted(each["bom-ref"] for each in found["components"])
    others = [each for each in found["dependencies"] if MAIN != each["ref"]]
    found["dependencies"] = [*others, {"ref": MAIN, "dependsOn": needed}]
    return found


def licences(packages: Iterable[Package], python: Path = Path(sys.executable)) -> dict[str, str]:
    """Return what each package says of its licence, as it is installed beside a Python."""
    words: list[str | Path] = ["--python", python, "--from=mixed", "--format=json", "--with-system", "--packages"]
    command = [BIN / "pip-licenses", *words, *(each.name for each in packages)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return {canonicalize_name(each["Name"]): each["License"] for each in json.loads(told.stdout)}


def allowed_licences() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return frozenset(project["tool"]["licenses"]["allowed"])


def refused(found: Mapping[str, str], allowed: frozenset[str]) -> list[str]:
    """Return the packages whose licence is not allowed, each with it."""
    return [f"{name}: {licence}" for name, licence in sorted(found.items()) if not _is_allowed(licence, allowed)]


def _is_allowed(licence: str, allowed: frozenset[str]) -> bool:
    """Of alternatives one must be allowed, of what holds together all. Brackets are not understood: refused."""
    return any(
        all(each.strip() in allowed for each in re.split(r" AND |;", choice)) for choice in licence.split(" OR ")
    )


def write(folder: Path) -> list[str]:
    """Write both documents of the image into a folder; return the licences that are not allowed."""
    folder.mkdir(exist_ok=True)
    packages = [each for each in locked(image()) if each in locked(here())]
    found = licences(packages)
    (folder / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(image()), indent=2) + "\n")
    (folder / "licenses.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    missing = [f"{each.name}: it is not installed here" for each in packages if each.name not in found]
    return missing + refused(found, allowed_licences())


def main(folder: str) -> None:
    """Write both, and exit 1 where a licence is not allowed."""
    if wrong := write(Path(folder)):
        raise SystemExit("Not allowed by [tool.licenses] of pyproject.toml: " + ", ".join(wrong) + ".")
    print(f"{folder}/sbom.cdx.json and {folder}/licenses.json: {len(locked(image()))} packages.")  # noqa: T201 - a target of make


if __name__ == "__main__":
    main(sys.argv[1])
