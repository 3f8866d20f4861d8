"""What an error of a server is, in words of ours: its kind, its code, the remedy. Pure; knows errors by their names.

Never an error's text: it may hold an address, a row, a job.
"""

from __future__ import annotations

import re

_CODES = re.compile(r"\b(OOM|MISCONF|READONLY|NOPERM|WRONGTYPE)\b")
# redis-py takes the code of these out of the text and makes it the class.
_CODE_OF = {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY", "NoPermissionError": "NOPERM"}
# Inside a script the code is missing.
_NO_RIGHT = re.compile(r"\bno permissions to\b", re.IGNORECASE)
_COMMAND = re.compile(r"'([a-z|]{2,30})' command")
_MAX_TEXT = 1000

_REMEDIES = {
    "OOM": "Redis is full and takes no writes; give it memory (`maxmemory`), or remove what nobody needs",
    "MISCONF": "Redis cannot save to its disk and takes no writes; its log says why",
    "READONLY": "this Redis is a replica and takes no writes; let REDIS_URL name the primary",
    "NOPERM": "the user of REDIS_URL lacks a right",
    "WRONGTYPE": "a key of ours holds another type; remove or rename it, `cancel-worker doctor` names it",
    "ReadOnlySqlTransaction": "the database is read-only; make it writable, or let DATABASE_URL name the primary",
    "InsufficientPrivilege": "the role of DATABASE_URL lacks a right; grant SELECT, INSERT and UPDATE",
}


def fault(error: BaseException | None) -> str:
    """Return what an error is, and what to do where that is known."""
    cause = getattr(error, "orig", None) or error
    name = type(cause).__name__
    text = str(cause)[:_MAX_TEXT]
    found = _CODES.search(text)
    code = _CODE_OF.get(name) or (found[1] if found else "NOPERM" if _NO_RIGHT.search(text) else name)
    remedy = _REMEDIES.get(code, "")
    if code == "NOPERM":
        command = _COMMAND.search(text)
        remedy += f": `ACL SETUSER ... +{command[1]}`" if command else ", perhaps to a key: `ACL SETUSER ... ~*`"
    kind = name if code == name or name in _CODE_OF else f"{name} {code}"
    return f"{kind}: {remedy}" if remedy else kind
