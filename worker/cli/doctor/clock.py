"""What `doctor` says of a clock beside this machine's.

Workers follow the ledger's clock and Redis', and never their own.
"""

from __future__ import annotations

from worker.cli.doctor.finding import Finding

SKEW_SECONDS = 5.0  # below it nobody who reads two logs side by side is misled


def clock_finding(part: str, theirs: float, ours: float) -> Finding:
    """Compare two clocks, in seconds of the same epoch."""
    ahead = theirs - ours
    said = f"clock {abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} this machine's"
    skewed = abs(ahead) > SKEW_SECONDS
    remedy = "Let NTP set both clocks: no cancel depends on it, but times that programs state and show do."
    return Finding(part, said, remedy if skewed else "", passing=skewed)
