"""Whether a release may be made: `make release`, or `make release DATE=2026-12-01`. Changes nothing but `dist/`.

Knows what must hold of the tree, the documents and what is built. It runs no test: that is done before
(CONTRIBUTING.md), and the tag is set afterwards, by whoever releases.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import supply_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECTION = re.compile(
    r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?\n(?P<text>.*?)(?=^## \[|\Z)", re.MULTILINE | re.DOTALL
)
PREVIOUS = re.compile(r"previous release: commit ([0-9a-f]{40})\b")
FINAL = re.compile(r"\d+\.\d+\.\d+")
NO_UV = "uv was not found on PATH, so the locks were not compiled again: only compared with pyproject.toml."


class Tree:
    """A working copy, as it lies there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, *parts: str) -> str:
        return self.root.joinpath(*parts).read_text()

    @property
    def version(self) -> str:
        found = re.search(r'^__version__ = "(.+)"$', self.text("worker", "version.py"), re.MULTILINE)
        return found[1] if found else ""

    def git(self, *words: str) -> str | None:
        """Return what git says; None where it fails."""
        command = [shutil.which("git") or "git", "-C", str(self.root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if 0 == done.returncode else None


# ---- what must hold, each a function that says in a sentence what does not


def not_clean(tree: Tree) -> Iterator[str]:
    changed = tree.git("status", "--porcelain")
    if changed is None:
        yield "This is no working copy of git: release from a clone."
    elif changed:
        yield f"The tree has changes that are not committed: commit or remove them.\n{changed}"


def wrong_version(tree: Tree, on: date) -> Iterator[str]:
    version = tree.version
    if not FINAL.fullmatch(version):
        yield f"worker/version.py says {version or 'nothing'}: write the version that is released, as in 0.2.0."
    if tree.git("rev-parse", "--verify", f"refs/tags/v{version}"):
        yield f"The tag v{version} is there already: a released version does not change."
    pending, newest = _newest_sections(tree)
    if pending:
        yield "CHANGELOG.md has entries under Unreleased: move them into the section of this version."
    if newest is None:
        yield "CHANGELOG.md has no section of a version."
    elif newest != (version, on.isoformat()):
        found = " - ".join(filter(None, newest))
        yield f"The newest section of CHANGELOG.md is [{found}], and should be [{version} - {on}]."


def _newest_sections(tree: Tree) -> tuple[str, tuple[str, str | None] | None]:
    """Return the text under Unreleased, and name and date of the section after it."""
    sections = list(SECTION.finditer(tree.text("CHANGELOG.md")))
    pending = "".join(each["text"] for each in sections if "Unreleased" == each["name"]).strip()
    named = [(each["name"], each["date"]) for each in sections if "Unreleased" != each["name"]]
    return pending, named[0] if named else None


def contract_not_kept(tree: Tree) -> Iterator[str]:
    kept = f"docs/contract/releases/{tree.version}.json"
    if not (tree.root / kept).is_file():
        yield f"{kept} is missing: run `make contract RELEASE={tree.version}`; later releases must read what it keeps."


def no_previous_release(tree: Tree) -> Iterator[str]:
    found = PREVIOUS.search(tree.text("docs", "upgrade.md"))
    if not found:
        yield "docs/upgrade.md names no commit of the previous release."
    elif tree.git("merge-base", "--is-ancestor", found[1], "HEAD") is None:
        yield f"docs/upgrade.md names {found[1]} as the previous release, which is not in the history of this commit."


def stale_locks(tree: Tree) -> Iterator[str]:
    """Compare each lock with what pyproject.toml asks for, without an index."""
    project = tomllib.loads(tree.text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "run": [*project["dependencies"], *extras["flower"]],
        "dev": [
            *project["dependencies"],
            *(each for extra in ("flower", "embedded", "dev") for each in extras[extra]),
        ],
    }
    for name, requirements in wanted.items():
        yield from (
            f"requirements/{name}.lock does not hold {each}: run `make lock`, then the tests."
            for each in map(Requirement, requirements)
            if not _is_held(each, tree.text("requirements", f"{name}.lock"))
        )


def _is_held(wanted: Requirement, lock: str) -> bool:
    if wanted.marker and not wanted.marker.evaluate(supply_chain.here()):
        return True
    found = {(canonicalize_name(each[1]), each[2]) for each in supply_chain.REQUIREMENT.finditer(lock)}
    name = canonicalize_name(wanted.name)
    return any(name == each and wanted.specifier.contains(version, prereleases=True) for each, version in found)


def locks_compile_otherwise(tree: Tree) -> Iterator[str]:
    """Compile the locks again, where that is possible, and see whether they stay as they are."""
    if not shutil.which("uv"):
        print(NO_UV)  # noqa: T201 - a target of make
    elif not _make(tree, "lock"):
        yield "`make lock` fails: its reason stands above."
    elif changed := tree.git("status", "--porcelain", "requirements"):
        yield f"The locks are not what pyproject.toml compiles to; they are now: run the tests, and commit.\n{changed}"


def check_fails(tree: Tree) -> Iterator[str]:
    if not _make(tree, "check"):
        yield "`make check` fails: its reason stands above."


def _make(tree: Tree, target: str) -> bool:
    return 0 == subprocess.run(["make", "--no-print-directory", target], cwd=tree.root, check=False).returncode  # noqa: S607


# ---- what is built


def bad_supply(tree: Tree) -> Iterator[str]:
    yield from (
        f"[tool.licenses] of pyproject.toml does not allow {each}." for each in supply_chain.write(tree.root / "dist")
    )


def bad_build(tree: Tree) -> Iterator[str]:
    """Build both archives, install the wheel in a clean environment and ask it for its version."""
    built = subprocess.run([BIN / "python", "-m", "hatchling", "build", "-d", "dist"], cwd=tree.root, check=False)
    wheels = list((tree.root / "dist").glob(f"*-{tree.version}-*.whl"))
    sources = list((tree.root / "dist").glob(f"*-{tree.version}.tar.gz"))
    if built.returncode or not (wheels and sources):
        yield f"The wheel and the source archive of {tree.version} could not be built: the reason stands above."
        return
    said = installed_version(wheels[0], tree.root / "requirements" / "run.lock")
    if said != f"cancel-worker {tree.version}":
        yield f"`cancel-worker --version` of the installed wheel says {said!r}, and should say {tree.version}."


def installed_version(wheel: Path, lock: Path) -> str:
    """Return what the program says of its version where nothing but its wheel and the lock is installed."""
    with tempfile.TemporaryDirectory(prefix="cancel-worker-release-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--only-binary=:all:", "-r", lock], check=True)
        subprocess.run([*pip, "--no-index", wheel], check=True)
        said = subprocess.run(
            [f"{folder}/bin/cancel-worker", "--version"], cwd=folder, capture_output=True, text=True, check=False
        )
        return said.stdout.strip() or said.stderr.strip()


# ---- all of it


def refusals(tree: Tree, on: date) -> list[str]:
    """Look at everything that costs no time; return what forbids the release."""
    found = [*not_clean(tree), *wrong_version(tree, on), *contract_not_kept(tree), *no_previous_release(tree)]
    return [*found, *stale_locks(tree)]


def built(tree: Tree) -> list[str]:
    """Check and build, each step only where those before it went well; return what went wrong."""
    shutil.rmtree(tree.root / "dist", ignore_errors=True)
    steps: list[Callable[[Tree], Iterator[str]]] = [
        locks_compile_otherwise,
        check_fails,
        bad_supply,
        bad_build,
        not_clean,
    ]
    for step in steps:
        if wrong := list(step(tree)):
            return wrong
    return []


def tag_commands(tree: Tree) -> str:
    """Return what makes an annotated, signed tag of this commit, and what publishes it."""
    tag = f"v{tree.version}"
    commit = tree.git("rev-parse", "HEAD")
    return f"  git tag --sign --annotate {tag} --message 'Version {tree.version}' {commit}\n  git push origin {tag}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make release", description="Whether a release may be made.")
    parser.add_argument("--date", type=date.fromisoformat, default=datetime.now(UTC).date())
    on = parser.parse_args().date
    tree = Tree(ROOT)
    if wrong := refusals(tree, on) or built(tree):
        raise SystemExit("\n".join(["No release:", *(f"* {each}" for each in wrong)]))
    print(f"dist/ holds version {tree.version}. Whoever releases runs:\n\n{tag_commands(tree)}")  # noqa: T201 - as above


if __name__ == "__main__":
    main()
