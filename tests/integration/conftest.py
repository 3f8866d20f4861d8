"""What holds in every test on a real ledger: events of the stream have the fields that are listed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from worker.ledger import outbox
from worker.telemetry.events import STREAM_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from worker.ledger.outbox import NewEvent


@pytest.fixture(autouse=True)
def every_stream_event_has_the_fields_listed_for_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write, unlike = outbox._write, []

    def compare_and_write(db: Any, news: Iterable[NewEvent], lease_seconds: float) -> Any:
        events = list(news)
        listed = [
            (kind, set(payload) - set(STREAM_EVENTS[kind].optional), set(STREAM_EVENTS[kind].fields))
            for _, kind, payload in events
            if kind in STREAM_EVENTS
        ]
        unlike.extend(each for each in listed if each[1] != each[2])
        return write(db, events, lease_seconds)

    monkeypatch.setattr(outbox, "_write", compare_and_write)
    yield
    assert [] == unlike
