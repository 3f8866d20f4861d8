"""The settings that a decision depends on, and for how long its facts are kept; nothing else."""

from __future__ import annotations

import msgspec


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How long is tried, waited and read again, in seconds."""

    retry_base: float = 1.0
    retry_cap: float = 900.0
    retry_horizon: float = 86_400.0
    read_back: tuple[float, ...] = (120.0, 900.0, 4200.0)  # after the end; the copy is hourly
    not_found_grace: float = 4500.0  # an order may be younger than Trackstar's copy; 0: refused at once
    watch: float = 14 * 86_400.0  # for so long a verdict is compared with what changes


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """For how long things are kept, in seconds; 0: for ever."""

    facts: float = 365 * 86_400.0  # ended and proven cancellations, with their attempts and events
    documents: float = 90 * 86_400.0  # orders as Trackstar returned them
    dead_letters: float = 30 * 86_400.0
