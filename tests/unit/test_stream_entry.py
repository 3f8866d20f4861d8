"""Entries of the streams of events are read as they were written, also by the last release; others are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import CancelError, EventError, read_stream_event
from worker.cancellation.event import CancellationEvent, ConnectionEvent, Event, make_event
from worker.cancellation.request import parse_request
from worker.cancellation.signature import Signer
from worker.cancellation.stream_entry import NEVER_SAID, write_entry
from worker.environment import SettingsError

NEW, OLD = (f"whsec_{letter * 32}" for letter in "ab")
LONG_AGO = datetime.now(UTC) - timedelta(days=90)
ENDED = make_event(
    7,
    "cancellation.ended",
    LONG_AGO,
    {"connection_id": "shop-1", "order_id": "1001", "cancellation_id": "c", "safe_to_refund": "yes"},
)
RELEASES = sorted((Path(__file__).parents[2] / "docs" / "contract" / "releases").glob("*.json"))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENT_SIGNING_SECRET", raising=False)


def entry(event: Event = ENDED, *secrets: str) -> dict[bytes, bytes]:
    """Return the fields of an entry as Redis returns them."""
    written = write_entry(7, event, Signer(secrets) if secrets else None, LONG_AGO)
    values = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in written.items()}
    return {name.encode(): value for name, value in values.items()}


def as_text(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


# -- what is signed


def test_an_entry_is_read_as_it_was_written_in_bytes_or_in_text() -> None:
    assert [ENDED] * 4 == [
        read_stream_event(entry()),
        read_stream_event(as_text(entry())),
        read_stream_event(entry(ENDED, NEW), NEW),
        read_stream_event(as_text(entry(ENDED, NEW)), NEW),
    ]


def test_without_a_secret_an_entry_has_no_signature() -> None:
    assert {"type", "event", "event_id"} == set(as_text(entry()))


def test_the_secret_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{NEW}\n")
    monkeypatch.setenv("EVENT_SIGNING_SECRET_FILE", str(tmp_path / "secret"))

    assert ENDED == read_stream_event(entry(ENDED, NEW))
    with pytest.raises(EventError, match="not signed by the secret that is expected"):
        read_stream_event(entry(ENDED, OLD))
    with pytest.raises(EventError, match="has no signature"):
        read_stream_event(entry())


def test_a_secret_that_is_none_is_refused_and_never_means_that_nothing_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and base64"):
        read_stream_event(entry(), "")
    monkeypatch.setenv("EVENT_SIGNING_SECRET", "swordfish")
    with pytest.raises(SettingsError, match=r"^EVENT_SIGNING_SECRET: must be whsec_ and base64"):
        read_stream_event(entry())


def test_an_unsigned_entry_is_refused_with_a_sentence() -> None:
    with pytest.raises(CancelError, match=r"has no signature.*Do not act on it; ask the ledger\.$"):
        read_stream_event(entry(), NEW)


@pytest.mark.parametrize("name", [b"event", b"webhook-id", b"webhook-timestamp", b"webhook-signature"])
def test_an_altered_entry_is_refused_with_a_sentence(name: bytes) -> None:
    fields = entry(ENDED, NEW)
    fields[name] = fields[name].replace(b"1", b"2")

    with pytest.raises(CancelError, match="was altered, or the workers sign with another EVENT_SIGNING_SECRET"):
        read_stream_event(fields, NEW)


def test_the_type_of_an_entry_is_not_believed() -> None:
    fields = {**entry(ENDED, NEW), b"type": b"refund.released"}

    assert "cancellation.ended" == read_stream_event(fields, NEW).type


def test_an_event_cannot_be_given_the_signature_of_another() -> None:
    other = make_event(8, "cancellation.ended", LONG_AGO, {**FACTS, "order_id": "1002"})
    fields = {**entry(ENDED, NEW), b"event": entry(other, NEW)[b"event"]}

    with pytest.raises(EventError, match="not signed"):
        read_stream_event(fields, NEW)


FACTS = {"connection_id": "shop-1", "order_id": "1001", "cancellation_id": "c"}


@pytest.mark.parametrize("secrets", [(NEW,), (NEW, OLD), (OLD,)])
def test_during_a_rotation_a_reader_of_both_reads_all(secrets: tuple[str, ...]) -> None:
    assert ENDED == read_stream_event(entry(ENDED, *secrets), f"{NEW} {OLD}")


# -- what is no event


@given(
    st.one_of(
        st.dictionaries(st.text() | st.binary(), st.text() | st.binary() | st.none()),
        st.builds(lambda event: {"type": "a.b", "event": event, "event_id": "7"}, st.text() | st.binary()),
        st.builds(
            lambda facts, number: {"type": "cancellation.ended", "event": json.dumps(facts), "event_id": number},
            st.dictionaries(
                st.sampled_from(["id", "at", "schema", "type", "connection_id", "order_id", "attempts"]),
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]),
            ),
            st.text() | st.integers().map(str),
        ),
    )
)
def test_whatever_stands_on_the_stream_is_an_event_or_refused(fields: dict[Any, Any]) -> None:
    try:
        read = read_stream_event(fields)
    except EventError:
        return
    assert read.type


def test_an_event_of_a_later_release_is_read() -> None:
    later = json.loads(entry()[b"event"]) | {"schema": 2, "type": "cancellation.news", "verdict": "odd", "new": [1]}
    read = read_stream_event({"type": "cancellation.news", "event": json.dumps(later), "event_id": "7"})

    assert isinstance(read, CancellationEvent)
    assert ("cancellation.news", 2, "odd", "1001") == (read.type, read.schema, read.verdict, read.order_id)


# -- what earlier releases wrote


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_every_job_of_an_earlier_release_is_taken(release: Path) -> None:
    jobs = json.loads(release.read_text())["jobs"]

    assert jobs == [json.loads(parse_request(json.dumps(each)).to_json()) for each in jobs]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_every_entry_of_an_earlier_release_is_read(release: Path) -> None:
    entries = json.loads(release.read_text())["events"]
    read = [read_stream_event(each) for each in entries]

    assert [each["type"] for each in entries] == [each.type for each in read]


def test_an_entry_of_0_1_says_what_it_said() -> None:
    entries = {each["type"]: each for each in json.loads(RELEASES[0].read_text())["events"]}
    ended, raised, held = (
        read_stream_event(entries[type_])
        for type_ in ("cancellation.ended", "cancellation.verdict_raised", "connection.held")
    )

    assert isinstance(ended, CancellationEvent)
    assert isinstance(raised, CancellationEvent)
    assert isinstance(held, ConnectionEvent)
    assert ("A-09", "succeeded", "accepted", "not yet", 1) == (
        ended.order_id,
        ended.status,
        ended.verdict,
        ended.safe_to_refund,
        ended.attempts,
    )
    assert ended.cancellation_id == raised.cancellation_id == json.loads(entries["cancellation.ended"]["event"])["id"]
    assert ("yes", NEVER_SAID, 0, "evt_11_0") == (raised.safe_to_refund, raised.at, raised.schema, raised.id)
    assert ("demo-shop", "operator") == (held.connection_id, held.reason)
    assert 2026 == ended.at.year
