"""What `doctor` says of one thing that it looked at. Knows no part."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `remedy` is what to do; empty where all is well."""

    part: str
    said: str
    remedy: str = ""
    passing: bool = False  # nothing of ours is broken, and it may pass by itself
