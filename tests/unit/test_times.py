"""How commands write instants: local time with its offset at a terminal, UTC for programs and with `--utc`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from worker.cli import times
from worker.cli.times import minute, minute_from, moment

if TYPE_CHECKING:
    from collections.abc import Iterator

WINTER, SUMMER = datetime(2026, 1, 2, 14, 5, 30, tzinfo=UTC), datetime(2026, 7, 2, 22, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_a_person_at_a_terminal_sees_local_time_with_its_offset() -> None:
    assert "2026-01-02 15:05:30 +01:00" == moment(WINTER)
    assert "2026-07-03 00:05:00 +02:00" == moment(SUMMER)
    assert "2026-07-03 00:05 +02:00" == minute(SUMMER)


def test_programs_see_utc() -> None:
    assert "2026-01-02 14:05:30 UTC" == moment(WINTER)
    assert "2026-07-02 22:05 UTC" == minute(SUMMER)


@pytest.mark.usefixtures("terminal")
def test_who_asks_for_utc_sees_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "_in_utc", True)

    assert "2026-01-02 14:05:30 UTC" == moment(WINTER)


def test_what_is_known_within_a_minute_is_known_by_the_next_one() -> None:
    assert "2026-01-02 14:06 UTC" == minute_from(WINTER)
    assert "2026-07-02 22:05 UTC" == minute_from(SUMMER)


def test_of_today_only_the_time_is_shown() -> None:
    now = datetime.now(UTC)

    assert minute(now) in {f"{now:%H:%M} UTC", f"{now:%Y-%m-%d %H:%M} UTC"}


def test_no_instant_is_no_text() -> None:
    assert "" == moment(None)
