"""When a connection, or Trackstar as a whole, counts as down. Numbers only; `runtime.outages` counts."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

WINDOW_SECONDS = 30  # of answers that are looked at
MIN_FAILURES = 10  # fewer are an accident, and each job's own backoff is enough
MAJORITY = 0.8
MIN_CONNECTIONS = 3  # that fail alike before it is Trackstar's fault
MAJORITY_OF_ALL = 0.9

FIRST_PROBE_SECONDS = 10.0
LONGEST_PROBE_SECONDS = 60.0


class Tally(msgspec.Struct, frozen=True):
    """Recent answers of one connection."""

    good: int
    bad: int


def is_failure(http_status: int | None) -> bool | None:
    """Whether an answer (None: none came) shows that its connection is down; None where it says nothing of that."""
    if http_status is None:
        return True
    if http_status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}:
        return None
    # 501 is an answer, and a final one.
    return http_status >= HTTPStatus.INTERNAL_SERVER_ERROR and http_status != HTTPStatus.NOT_IMPLEMENTED


def is_down(tally: Tally) -> bool:
    """Whether a clear majority of a connection's recent answers were failures."""
    return tally.bad >= MIN_FAILURES and tally.bad >= MAJORITY * (tally.good + tally.bad)


def all_are_down(tallies: Mapping[str, Tally]) -> bool:
    """Whether nearly all answers of nearly all connections are failures: then it is none of theirs."""
    failing = [each for each in tallies.values() if each.bad and each.bad >= MAJORITY * (each.good + each.bad)]
    bad = sum(each.bad for each in tallies.values())
    answers = bad + sum(each.good for each in tallies.values())
    return (
        len(failing) >= MIN_CONNECTIONS
        and len(failing) >= MAJORITY_OF_ALL * len(tallies)
        and bad >= MIN_FAILURES
        and bad >= MAJORITY_OF_ALL * answers
    )


def seconds_to_probe(held: float) -> float:
    """Return how long after a probe the next one may go, of a hold that has lasted `held` seconds.

    A tenth of its age: a short outage is noticed to be over soon, and one of three hours costs some two hundred calls.
    """
    return min(LONGEST_PROBE_SECONDS, max(FIRST_PROBE_SECONDS, held / 10))
