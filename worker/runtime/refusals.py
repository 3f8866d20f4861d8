"""A Redis that answers and refuses: the reason is named in the log, and by the worker's health, until it is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from worker.inputs.faults import word_of
from worker.streams import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis, RedisError

    from worker.telemetry.health import Vitals

log = structlog.get_logger()

AGAIN_SECONDS = 300.0  # the same refusal is told again so often


class Refusals:
    """What Redis refuses to one part of a worker, whose keys are to be of the types given."""

    def __init__(self, redis: Redis, part: str, keys: Mapping[str, str], vitals: Vitals) -> None:
        self._redis = redis
        self._part = part
        self._keys = keys
        self._vitals = vitals
        self._told: tuple[str, float] = ("", 0.0)

    def note(self, error: RedisError) -> None:
        """Name what is refused; an error that is no answer of Redis is the loop's to tell."""
        sentence = refusal(self._redis, error, self._keys)
        if sentence is None:
            return
        self._vitals.found(self._part, [f"{self._part}: {sentence}."])
        told, at = self._told
        if told != sentence or time.monotonic() - at > AGAIN_SECONDS:
            self._told = (sentence, time.monotonic())
            log.warning("redis.refuses", part=self._part, error=word_of(error), remedy=sentence)

    def over(self) -> None:
        """Note that it did what was asked."""
        if self._told[0]:
            self._told = ("", 0.0)
            self._vitals.found(self._part, [])
