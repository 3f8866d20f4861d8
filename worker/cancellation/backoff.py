"""How long to wait before the next try. Knows numbers only: no clock, no dice of its own."""

from __future__ import annotations

# Above the exponent the ceiling is the cap anyway; the bound keeps 2**n a float.
_MAX_EXPONENT = 60


def ceiling(spent: int, *, base: float, cap: float) -> float:
    """Return the longest wait in seconds after `spent` tries (1 or more): base, 2 base, 4 base ... cap."""
    return min(cap, base * 2.0 ** min(max(spent - 1, 0), _MAX_EXPONENT))


def backoff(spent: int, *, base: float, cap: float, jitter: float, floor: float = 0.0) -> float:
    """Return the wait in seconds: full jitter below the ceiling, never less than `floor`.

    `jitter` is uniform in [0, 1). Full jitter spreads a thousand orders that failed together over the whole
    interval, also at the cap. `floor` is the server's own word (`retry-after`); callers clamp it.
    """
    longest = ceiling(spent, base=base, cap=cap)
    # On top of a floor the jitter stays, or everyone who was told "in 5 s" comes back in the same instant.
    return floor + min(longest, base) * jitter if floor else longest * jitter
