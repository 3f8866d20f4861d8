"""Makes the inside of a container, and becomes its program: `unshare ... python contain.py SPEC.json`.

Runs as root in namespaces of its own (network, mounts, processes). Knows mounts, users and rights, and no service. The
root file system is one in memory, with the few folders of this machine that a program needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SETPRIV = "/usr/bin/setpriv"
NO_RIGHTS = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
LINKS = ("bin", "sbin", "lib", "lib64")  # into /usr, where a system has merged them


def main(path: str) -> None:
    spec = json.loads(Path(path).read_text())
    root = Path(spec["root"])
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "mode=755,size=16m", "root", root)
    _system(root)
    for name, text in spec["files"].items():
        _place(root, name).write_text(text)
    for place, target in spec["links"]:
        _place(root, place).symlink_to(target)
    for place, options in spec["tmpfs"].items():
        _folder(root, place)
        _mount("-t", "tmpfs", "-o", options, "tmpfs", root / place.lstrip("/"))
    for place, source in spec["binds"]:
        _bind(root, place, Path(source))
    _folder(root, spec["workdir"])
    for place, source in spec["volumes"]:
        _bind(root, place, Path(source), "rw")
    if spec["read_only"]:
        _mount("-o", "remount,ro", root)
    os.read(0, 1)  # until the network is there
    os.chroot(root)
    os.chdir(spec["workdir"])
    rights = NO_RIGHTS if spec["no_rights"] else NO_RIGHTS[:1]
    # Who becomes another user forgets that it was to end with its parent.
    command = [SETPRIV, *_user(spec["user"]), *rights, "--pdeathsig=KILL", "--", *spec["words"]]
    os.execve(SETPRIV, command, spec["environment"])  # noqa: S606


def _system(root: Path) -> None:
    for name in ("proc", "dev", "usr"):
        (root / name).mkdir()
    for name in LINKS:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
        elif Path("/", name).exists():
            _bind(root, name, Path("/", name))
    _bind(root, "usr", Path("/usr"))
    _mount("--rbind", "/dev", root / "dev")
    _mount("-t", "proc", "proc", root / "proc")


def _bind(root: Path, place: str, source: Path, how: str = "ro") -> None:
    target = _folder(root, place) if source.is_dir() else _place(root, place)
    if not source.is_dir():
        target.touch()
    _mount("--bind", source, target)
    _mount("-o", f"remount,bind,{how}", target)


def _folder(root: Path, place: str) -> Path:
    target = root / place.lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    return target


def _place(root: Path, name: str) -> Path:
    target = root / name.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _user(user: str) -> list[str]:
    uid, gid = user.split(":")
    return [f"--reuid={uid}", f"--regid={gid}"]


def _mount(*words: Any) -> None:
    subprocess.run(["mount", *words], check=True)  # noqa: S607 - as root, wherever it is


if __name__ == "__main__":
    main(sys.argv[1])
