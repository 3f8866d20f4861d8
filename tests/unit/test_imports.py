"""To import a module of the worker does nothing: it starts no thread, opens nothing, sets nothing and never exits."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import worker

MODULES = [
    module.name for module in pkgutil.walk_packages(worker.__path__, "worker.") if not module.name.endswith("__main__")
]

# Run in a process of its own, which looks at itself before and after.
IMPORTING = """
import importlib, json, gc, os, signal, sys, threading

def look():
    return {
        "environment": sorted(os.environ.items()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "interpreter": [sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()],
        "hooks": [str(sys.excepthook), str(threading.excepthook)],
    }

opened = []

def listen(event, args):
    ipv6 = event == "socket.bind" and args[1] == ("::1", 0)  # urllib3 looks whether there is any
    if event.split(".")[0] in {"socket", "subprocess", "sqlite3"} and event != "socket.__new__" and not ipv6:
        opened.append(event)

modules = json.loads(sys.argv.pop(1))
before = look()
sys.addaudithook(listen)
for name in modules:
    importlib.import_module(name)
after = look()
print(json.dumps({"changed": [name for name in before if before[name] != after[name]], "opened": opened}))
"""


def imported(modules: list[str], *argv: str) -> dict[str, list[str]]:
    """Import these as a program with these arguments would, and return what that changed and opened."""
    command = [sys.executable, "-W", "error", "-c", IMPORTING, json.dumps(modules), *argv]
    bare = {"PATH": os.environ["PATH"]}  # no password, no key, no address
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_no_module_has_an_effect_when_it_is_imported() -> None:
    assert {"worker.broker.app", "worker.broker.bootstep", "worker.runtime.supervisor", "worker.cli"} <= set(MODULES)
    assert {"changed": [], "opened": []} == imported(MODULES)


@pytest.mark.parametrize("command", ["flower", "worker"])
def test_the_app_of_celery_may_be_imported_by_a_program_that_lacks_every_setting(command: str) -> None:
    argv = ("-A", "worker", command)

    assert {"changed": [], "opened": []} == imported(["worker.broker.app"], *argv)
