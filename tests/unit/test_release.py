"""`make release` refuses, each in a sentence that says what to do, what must not be released."""

from __future__ import annotations

import shutil
import subprocess
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import release
from harness.release import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

GIT = shutil.which("git") or "git"
TODAY = date(2026, 12, 1)
CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- It.\n\n## [0.1.0] - 2026-11-24\n"
)
PYPROJECT = """
[project]
dependencies = [
  "celery[redis]>=5.7,<5.8",
  "cryptography>=50; sys_platform != 'nowhere'",
  "other>=2; sys_platform == 'nowhere'",
]
[project.optional-dependencies]
flower = ["flower>=2.2"]
embedded = ["Some_Server>=1"]
dev = ["ruff>=0.17"]
"""
RUN = ["celery==5.7.0", "cryptography==50.0.2", "flower==2.2.0"]
DEV = [*RUN, "some-server==1.1", "ruff==0.17.1"]
IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def lock(requirements: list[str]) -> str:
    return "".join(f"{each} \\\n    --hash=sha256:{'0' * 64}\n" for each in requirements)


def git(root: Path, *words: str) -> str:
    done = subprocess.run([GIT, "-C", root, *words], env=IDENTITY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A clone that may be released as 0.2.0 on TODAY."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path, "README.md", "")
    commit(tmp_path)
    previous = git(tmp_path, "rev-parse", "HEAD")
    write(tmp_path, "worker/version.py", '__version__ = "0.2.0"\n')
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "docs/contract/releases/0.2.0.json", "{}")
    write(tmp_path, "docs/upgrade.md", f"from\n\n    previous release: commit {previous}\n")
    write(tmp_path, "pyproject.toml", PYPROJECT)
    write(tmp_path, "requirements/run.lock", lock(RUN))
    write(tmp_path, "requirements/dev.lock", lock(DEV))
    commit(tmp_path)
    return Tree(tmp_path)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "it")


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        write(root, name, text.replace(old, new))
        commit(root)

    return change


def uncommitted(root: Path) -> None:
    write(root, "more.py", "")


def tagged(root: Path) -> None:
    git(root, "tag", "v0.2.0")


def without_contract(root: Path) -> None:
    (root / "docs/contract/releases/0.2.0.json").unlink()
    commit(root)


def with_a_previous_release_of_another_branch(root: Path) -> None:
    here = git(root, "rev-parse", "HEAD")
    git(root, "checkout", "--quiet", "--orphan", "other")
    git(root, "commit", "--quiet", "--message", "elsewhere")
    elsewhere = git(root, "rev-parse", "HEAD")
    git(root, "checkout", "--quiet", "--detach", here)
    old = (root / "docs/upgrade.md").read_text().split()[-1]
    replaced("docs/upgrade.md", old, elsewhere)(root)


def test_a_tree_in_which_all_holds_may_be_released(tree: Tree) -> None:
    assert [] == release.refusals(tree, TODAY)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(uncommitted, "changes that are not committed: commit or remove them.\n?? more.py", id="changes"),
        pytest.param(tagged, "The tag v0.2.0 is there already", id="tag"),
        pytest.param(replaced("CHANGELOG.md", "ed]\n", "ed]\n\n- More.\n"), "entries under Unreleased", id="pending"),
        pytest.param(
            replaced("CHANGELOG.md", "12-01", "11-30"),
            "is [0.2.0 - 2026-11-30], and should be [0.2.0 - 2026-12-01]",
            id="another date",
        ),
        pytest.param(
            replaced("CHANGELOG.md", "[0.2.0]", "[0.3.0]"),
            "is [0.3.0 - 2026-12-01], and should be [0.2.0 - 2026-12-01]",
            id="another version",
        ),
        pytest.param(without_contract, "run `make contract RELEASE=0.2.0`", id="contract"),
        pytest.param(replaced("docs/upgrade.md", "commit ", "tag "), "names no commit", id="no previous release"),
        pytest.param(with_a_previous_release_of_another_branch, "is not in the history", id="previous release"),
        pytest.param(
            replaced("requirements/run.lock", "celery==5.7.0", "celery==5.6.9"),
            "requirements/run.lock does not hold celery[redis]<5.8,>=5.7: run `make lock`",
            id="locked too old",
        ),
        pytest.param(
            replaced("requirements/dev.lock", "some-server", "another"),
            "requirements/dev.lock does not hold Some_Server>=1",
            id="not locked",
        ),
    ],
)
def test_one_thing_that_does_not_hold_is_refused_alone(
    tree: Tree, change: Callable[[Path], None], sentence: str
) -> None:
    change(tree.root)
    (refusal,) = release.refusals(tree, TODAY)

    assert sentence in refusal


@pytest.mark.parametrize("version", ["0.2.0.dev0", "0.2", ""])
def test_a_version_that_is_none_of_a_release_is_refused(tree: Tree, version: str) -> None:
    replaced("worker/version.py", "0.2.0", version)(tree.root)

    assert any("write the version that is released" in each for each in release.refusals(tree, TODAY))


def test_a_changelog_without_a_version_and_a_folder_without_git_are_refused(tmp_path: Path, tree: Tree) -> None:
    write(tree.root, "CHANGELOG.md", "# Changelog\n")
    shutil.rmtree(tmp_path / ".git")
    found = " ".join(release.refusals(tree, TODAY))

    assert "no working copy of git" in found
    assert "no section of a version" in found


def test_the_tag_of_this_commit_is_signed_and_annotated(tree: Tree) -> None:
    head = git(tree.root, "rev-parse", "HEAD")

    assert f"git tag --sign --annotate v0.2.0 --message 'Version 0.2.0' {head}\n" in release.tag_commands(tree)


# ---- what takes time


def with_makefile(tree: Tree, lock_does: str = ":", check_does: str = ":") -> Tree:
    write(tree.root, "Makefile", f"lock:\n\t{lock_does}\ncheck:\n\t{check_does}\n")
    write(tree.root, ".gitignore", "dist/\n")
    commit(tree.root)
    return tree


@pytest.fixture
def uv(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `uv` on PATH; what it does, the Makefile of a test says."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "uv").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.usefixtures("uv")
def test_locks_that_compile_otherwise_are_refused_and_named(tree: Tree) -> None:
    with_makefile(tree, lock_does="echo >> requirements/run.lock")
    (refusal,) = release.locks_compile_otherwise(tree)

    assert "run the tests, and commit" in refusal
    assert "requirements/run.lock" in refusal


@pytest.mark.usefixtures("uv")
def test_locks_that_cannot_be_compiled_are_refused_and_those_that_stay_pass(tree: Tree) -> None:
    assert [] == list(release.locks_compile_otherwise(with_makefile(tree)))
    assert ["`make lock` fails: its reason stands above."] == list(
        release.locks_compile_otherwise(with_makefile(tree, lock_does="false"))
    )


def test_without_uv_it_is_said_what_was_not_looked_at(
    tree: Tree,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))

    assert [] == list(release.locks_compile_otherwise(tree))
    assert "uv was not found on PATH" in capsys.readouterr().out


def test_a_check_that_fails_is_refused_and_nothing_is_built(tree: Tree) -> None:
    with_makefile(tree, check_does="false")

    assert ["`make check` fails: its reason stands above."] == release.built(tree)
    assert not (tree.root / "dist").exists()


def test_a_package_that_cannot_be_built_is_refused(tree: Tree) -> None:
    (refusal,) = release.bad_build(tree)

    assert "of 0.2.0 could not be built" in refusal


def test_a_wheel_that_says_another_version_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tree.root, "pyproject.toml", HATCH)
    monkeypatch.setattr(release, "installed_version", lambda *_: "cancel-worker 0.1.0")
    (refusal,) = release.bad_build(tree)

    assert "says 'cancel-worker 0.1.0', and should say 0.2.0" in refusal


def test_a_licence_that_is_not_allowed_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release.supply_chain, "allowed_licences", lambda: frozenset({"MIT"}))
    found = list(release.bad_supply(tree))

    assert "[tool.licenses] of pyproject.toml does not allow celery: BSD-3-Clause." in found


HATCH = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "trackstar-cancel-worker"
dynamic = ["version"]
[tool.hatch.version]
path = "worker/version.py"
[tool.hatch.build.targets.wheel]
packages = ["worker"]
"""
