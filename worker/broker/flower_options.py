"""What Flower must be told before it starts: a password, and that it only looks.

Flower has no hook for that, so it is asked when Flower has read its options and loads the app's modules.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from worker.environment import from_environment

PASSWORD = "FLOWER_BASIC_AUTH"  # noqa: S105 - the name of a setting
READ_ONLY = "FLOWER_READ_ONLY"


def check_flower(**_: Any) -> None:
    """Refuse to start Flower without a password. Does nothing in any other program."""
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "flower":
        return
    from tornado.options import options  # noqa: PLC0415 - of Flower, which is an extra

    if not options.basic_auth and (password := from_environment(PASSWORD)):
        options.basic_auth = password.split(",")
    if not (options.basic_auth or options.auth):
        raise SystemExit(f"Flower does not start without a password: set {PASSWORD} to user:password.")
    # Whoever knows Flower's password should not be able to run tasks; "false" allows that.
    if READ_ONLY not in os.environ and not any(word.startswith(("--read_only", "--read-only")) for word in sys.argv):
        options.read_only = True
