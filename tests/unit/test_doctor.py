"""What is green, yellow and red of one fact, and that a part that hangs hides no other."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from worker.cancellation.standstill import STANDSTILL_SECONDS
from worker.cli.doctor.asking import Part, ask
from worker.cli.doctor.clock import clock_finding
from worker.cli.doctor.finding import Finding
from worker.cli.doctor.ledger import _vacuum
from worker.cli.doctor.program import _place, look_at_program, settings_in_force
from worker.cli.doctor.redis import _lag, _memory
from worker.cli.words import in_bytes, in_time
from worker.ledger.checkup import Checkup, Vacuum
from worker.runtime.transport import InboxLook
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MILLION = 1_000_000


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that nobody sets before the test has ended."""
    event = threading.Event()
    yield event
    event.set()


def test_a_part_that_hangs_is_named_with_what_it_found_and_hides_no_other(never: threading.Event) -> None:
    def hangs(_: Settings) -> Iterator[Finding]:
        yield Finding("Hung", "began")
        never.wait()

    def well(_: Settings) -> Iterator[Finding]:
        yield Finding("Well", "good")

    began = time.monotonic()
    parts = [Part("Hung", hangs, "Mend it."), Part("Also hung", hangs), Part("Well", well)]
    found = ask(parts, Settings(), seconds=0.1)

    assert time.monotonic() - began < 5
    assert [
        ("Hung", "began", "green"),
        ("Hung", "does not answer within 0.1 s", "red"),
        ("Hung", "began", "green"),
        ("Also hung", "does not answer within 0.1 s", "yellow"),
        ("Well", "good", "green"),
    ] == [(each.part, each.said, each.colour) for each in found]


def test_what_a_part_raises_reaches_the_command() -> None:
    def fails(_: Settings) -> Iterator[Finding]:
        raise ValueError("REDIS_URL is wrong.")

    with pytest.raises(ValueError, match="REDIS_URL is wrong"):
        ask([Part("Redis", fails)], Settings())


@pytest.mark.parametrize(
    ("used", "most", "colour"), [(5, 0, "yellow"), (80, 100, "green"), (81, 100, "yellow"), (96, 100, "red")]
)
def test_memory_that_runs_out_is_told_before_it_has(used: int, most: int, colour: str) -> None:
    assert colour == _memory({"used_memory": used * MILLION, "maxmemory": most * MILLION}).colour


@pytest.mark.parametrize(
    ("count", "seconds", "colour"),
    [(0, 0, "green"), (9, 9, "green"), (9, 11, "yellow"), (9, STANDSTILL_SECONDS + 1, "red")],
)
def test_an_inbox_that_nobody_empties_is_told(count: int, seconds: int, colour: str) -> None:
    look = InboxLook("stream", f"{(1000 - int(seconds)) * 1000}-0" if count else "", 0, 1000)

    assert colour == _lag("Inbox", count, look).colour


@pytest.mark.parametrize(
    ("theirs", "colour"), [(104.0, "green"), (96.0, "green"), (106.0, "yellow"), (94.0, "yellow")]
)
def test_a_clock_that_is_off_is_a_matter_of_people_only(theirs: float, colour: str) -> None:
    assert colour == clock_finding("Redis", theirs, 100.0).colour


@pytest.mark.parametrize(
    ("vacuum", "said", "colour"),
    [
        (Vacuum(10, 0, None, 5), "vacuumed never", "green"),
        (Vacuum(MILLION, MILLION // 5, 7200.0, 5), "vacuumed 2 h ago", "green"),
        (Vacuum(MILLION, MILLION, 7200.0, 5), "1000000 dead rows", "yellow"),
        (Vacuum(10, 0, 60.0, 1200 * MILLION), "1200 million", "yellow"),
        (Vacuum(10, 0, 60.0, 1900 * MILLION), "1900 million", "red"),
    ],
)
def test_a_table_that_nobody_vacuums_is_told(vacuum: Vacuum, said: str, colour: str) -> None:
    (found,) = _vacuum(Checkup("PostgreSQL", "16", "UTF8", 1, vacuum))

    assert (True, colour) == (said in found.said, found.colour)


def test_settings_are_told_with_their_source_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-a-file")
    monkeypatch.setenv("TRACKSTAR_API_KEY_FILE", str(key))
    monkeypatch.setenv("REDIS_URL", "redis://me:pw@redis.example:7000/3?socket_timeout=9")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pw@db.example:5433/orders?options=-csearch_path%3Dpw")
    monkeypatch.setenv("TRACKSTAR_PROXY", "http://me:pw@proxy.example:1")
    monkeypatch.setenv("SENTRY_DSN", "https://pw@sentry.example/1")
    monkeypatch.setenv("EVENT_SIGNING_SECRET", f"whsec_{'pw' * 16} whsec_{'pw' * 18}")
    monkeypatch.setenv("CONCURRENCY", "7")
    load_settings.cache_clear()
    settings = load_settings()
    found = {each.name: (each.value, each.source) for each in settings_in_force(settings)}
    said = [each.said for each in look_at_program(settings)]

    assert ("set", "file") == found["TRACKSTAR_API_KEY"]
    assert ("redis redis.example 7000 database 3", "environment") == found["REDIS_URL"]
    assert ("postgresql db.example 5433 orders", "environment") == found["DATABASE_URL"]
    assert ("set", "environment") == found["TRACKSTAR_PROXY"] == found["SENTRY_DSN"]
    assert ("set", "environment") == found["EVENT_SIGNING_SECRET"]
    assert (("7", "environment"), ("not set", "default")) == (found["CONCURRENCY"], found["CREDENTIAL_KEYS"])
    assert {name.upper() for name in Settings.model_fields} <= set(found)
    assert "CONCURRENCY 7 (environment)" in said
    assert not [text for text in (*said, str(found)) if "pw" in text or "secret-of" in text]
    load_settings.cache_clear()


@pytest.mark.parametrize("address", ["postgresql://ann:one@two:pw@host/x", "postgresql://a:p@pw@host/x", "pw", ""])
def test_an_address_that_may_hold_a_password_elsewhere_is_not_shown(address: str) -> None:
    assert "cannot be read" == _place(address)


def test_sizes_and_times_are_written_for_people() -> None:
    assert ["12 bytes", "1.5 kB", "12 MB", "3 TB"] == [in_bytes(each) for each in (12, 1500, 12_000_000, 3 * 10**12)]
    assert ["90 s", "2 min", "2 h", "3 days"] == [in_time(each) for each in (90, 120, 7200, 259_200)]
