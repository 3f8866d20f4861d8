"""What is shipped besides our own code: the bill of materials is what is installed, and every licence is allowed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from harness import supply_chain
from harness.parts import needs

from worker.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = "import json, importlib.metadata as m; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
OF_THE_ENVIRONMENT = {"pip", "setuptools"}
UNREACHABLE = re.compile(r"Could not find a version|Failed to establish|Max retries|Temporary failure", re.IGNORECASE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the lock of the run, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    words = ["install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", supply_chain.LOCK]
    done = subprocess.run([python, "-m", "pip", *words], capture_output=True, text=True, check=False)
    needs(not (done.returncode and UNREACHABLE.search(done.stderr)), "reach an index of packages")
    assert 0 == done.returncode, done.stderr
    return python


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The bill of materials of the image."""
    return supply_chain.bill_of_materials(supply_chain.image())


def installed(python: Path) -> set[tuple[str, str]]:
    said = subprocess.run([python, "-c", INSTALLED], capture_output=True, text=True, check=True)
    found = {(canonical(name), version) for name, version in json.loads(said.stdout)}
    return {(name, version) for name, version in found if name not in OF_THE_ENVIRONMENT}


def components(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(canonical(each["name"]), each["version"]) for each in document["components"]}


@pytest.mark.timeout(300)
def test_the_bill_of_materials_lists_what_a_clean_environment_has(clean: Path) -> None:
    assert installed(clean) == components(supply_chain.bill_of_materials(supply_chain.here()))


@pytest.mark.timeout(300)
def test_every_licence_of_a_clean_environment_is_allowed(clean: Path) -> None:
    packages = supply_chain.locked(supply_chain.here())
    found = supply_chain.licences(packages, clean)

    assert {each.name for each in packages} == set(found)
    assert [] == supply_chain.refused(found, supply_chain.allowed_licences())


def test_the_bill_of_the_image_has_each_package_once_and_the_hashes_of_the_lock(document: dict[str, Any]) -> None:
    names = [each["name"] for each in document["components"]]
    hashes = {
        each["content"]
        for component in document["components"]
        for reference in component["externalReferences"]
        for each in reference["hashes"]
    }

    assert len(names) == len(set(names))
    assert {"celery", "cryptography", "flower", "psycopg-binary"} <= set(names)
    assert set() == {"async-timeout", "colorama", "tzdata"} & set(names)
    assert hashes == {
        found
        for package in supply_chain.locked(supply_chain.image())
        for found in re.findall(r"--hash=sha256:(\w+)", package.text)
    }


def test_no_package_of_the_lock_is_left_out_of_the_reading() -> None:
    lines = [line for line in supply_chain.LOCK.read_text().splitlines() if line and not line.startswith((" ", "#"))]
    everywhere = [supply_chain.locked(supply_chain.here() | change) for change in ({}, {"sys_platform": "win32"})]

    assert {line.split("==")[0].split("[")[0] for line in lines} - {"async-timeout"} <= {
        each.name for some in everywhere for each in some
    }
    assert len(lines) == len(supply_chain.REQUIREMENT.findall(supply_chain.LOCK.read_text()))


def test_the_bill_is_valid_says_what_it_is_of_and_is_the_same_each_time(document: dict[str, Any]) -> None:
    main = document["metadata"]["component"]
    (root,) = [each for each in document["dependencies"] if main["bom-ref"] == each["ref"]]

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert ("trackstar-cancel-worker", __version__, "application") == (main["name"], main["version"], main["type"])
    assert {each["bom-ref"] for each in document["components"]} == set(root["dependsOn"])
    assert document == supply_chain.bill_of_materials(supply_chain.image())


def test_a_licence_that_is_not_allowed_is_told_with_its_package() -> None:
    found = {"a": "MIT", "b": "GPL-3.0-only", "c": "GPL-3.0-only OR MIT", "d": "GPL-3.0-only AND MIT", "e": "MIT; BSD"}

    assert ["b: GPL-3.0-only", "d: GPL-3.0-only AND MIT", "e: MIT; BSD"] == supply_chain.refused(
        found, frozenset({"MIT"})
    )


def test_both_are_written_for_a_release(tmp_path: Path) -> None:
    assert [] == supply_chain.write(tmp_path / "dist")
    assert {"licenses.json", "sbom.cdx.json"} == {each.name for each in (tmp_path / "dist").iterdir()}
