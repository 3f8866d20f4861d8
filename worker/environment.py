"""One value of the environment: NAME, or the content of the file that NAME_FILE names. Knows no setting by name."""

from __future__ import annotations

import os
from pathlib import Path

from worker.inputs.values import problem_of_text, stripped

MAX_FILE_BYTES = 65_536  # far above any value; a path to a device or a log would not end


class SettingsError(ValueError):
    """The worker refuses to start; the text says which setting to change, and to what."""


def from_environment(name: str) -> str | None:
    """Return NAME, or the content of the file that NAME_FILE names; None when neither is set.

    What surrounds it by mistake (whitespace, a line's end, a byte order mark, quotes) is taken off. Raises
    SettingsError, which never repeats the value.
    """
    value = stripped(os.environ.get(name, ""))
    if path := stripped(os.environ.get(f"{name}_FILE", "")):
        if value:
            raise SettingsError(f"{name} and {name}_FILE are both set: unset one of them.")
        value = _content(f"{name}_FILE", path)
    if problem := problem_of_text(value):
        raise SettingsError(f"{name} {problem}.")
    return value or None


def _content(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = stripped(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise SettingsError(f"{name} names {path}, which is no UTF-8 text: write it anew.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no path"
        raise SettingsError(f"{name} names {path}, which cannot be read: {reason}.") from error
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"{name} names {path}, which is too large to be a value: name another file.")
    if not text:
        raise SettingsError(f"{name} names {path}, which is empty: write the value into it, or unset {name}.")
    return text
