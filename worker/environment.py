"""One value of the environment: NAME, or the content of the file that NAME_FILE names. Knows no setting by name."""

from __future__ import annotations

import os
from pathlib import Path


class SettingsError(ValueError):
    """The worker refuses to start; the text says which setting to change, and to what."""


def from_environment(name: str) -> str | None:
    """Return NAME, or the content of the file that NAME_FILE names; None when neither is set."""
    if value := os.environ.get(name):
        return value
    if not (path := os.environ.get(f"{name}_FILE")):
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{name}_FILE names {path}, which cannot be read: {error}.") from error
