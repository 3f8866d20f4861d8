"""The few settings of the worker that whoever asks the ledger needs too, each from the environment or its default.

Knows their names; what else they may be, `settings` checks where a worker starts. Loads neither it nor pydantic.
"""

from __future__ import annotations

import getpass
import os
import socket

from worker.cancellation.pace import DOCUMENTED_WRITES_PER_SECOND
from worker.cancellation.policy import Policy
from worker.cancellation.signature import Signer, read_secrets
from worker.environment import SettingsError, from_environment
from worker.inputs.text import printable
from worker.inputs.values import problem_of_number

MAX_SECONDS = 30 * 86_400.0  # of any setting


def writes_per_second() -> float:
    """Return WRITES_PER_SECOND. Raises SettingsError."""
    return _numbers("WRITES_PER_SECOND", (DOCUMENTED_WRITES_PER_SECOND,))[0]


def policy() -> Policy:
    """Return what says by when a cancellation is known. Raises SettingsError."""
    default = Policy()
    return Policy(
        retry_horizon=_numbers("RETRY_HORIZON_SECONDS", (default.retry_horizon,))[0],
        read_back=_numbers("READ_BACK_SECONDS", default.read_back),
    )


def event_signer() -> Signer | None:
    """Return what believes the entries that EVENT_SIGNING_SECRET has signed; None where it is not set.

    Raises SettingsError.
    """
    stated = from_environment("EVENT_SIGNING_SECRET")
    try:
        return Signer(read_secrets(stated)) if stated else None
    except ValueError as error:
        raise SettingsError(f"EVENT_SIGNING_SECRET: {error}.") from None


def actor(stated: str | None = None) -> str:
    """Return who acts: what is stated, else CANCEL_ACTOR, else user@host. Raises SettingsError."""
    # Of a program too: its user and machine say which one it was, where a word such as "api" would name nobody.
    for named in (stated, from_environment("CANCEL_ACTOR")):
        if named and printable(named).strip():
            return named.strip()
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name, and no LOGNAME
        return f"uid {os.getuid()}"


def _numbers(name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    stated = from_environment(name)
    if stated is None:
        return default
    given = [part.strip() for part in stated.split(",") if part.strip()]
    if not given:
        raise SettingsError(f"{name}: must be a number.")
    for each in given:
        if (problem := problem_of_number(each)) or not 0 < float(each) <= MAX_SECONDS:
            raise SettingsError(f"{name}: {problem or f'must be above 0 and at most {MAX_SECONDS:.0f}'}.")
    return tuple(map(float, given))
