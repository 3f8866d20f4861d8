"""`docs/contract` is what the code says: schemas, documents, and an example of all that travels, which they fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import contract, golden
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from worker import read_stream_event
from worker.cancellation.event import MAX_BYTES, TEST, read_event, write_event
from worker.cancellation.request import CancelRequest, InvalidRequest, parse_request
from worker.telemetry.events import STREAM_EVENTS

WRITTEN = {str(path.relative_to(contract.FOLDER)): path for path in sorted(contract.FOLDER.rglob("*.json"))}
EVENTS = sorted(STREAM_EVENTS)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """What `make contract` writes."""
    return contract.files()


def validator(name: str) -> Draft202012Validator:
    schema = json.loads(WRITTEN[f"{name}.schema.json"].read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def example(name: str) -> Any:
    return json.loads(WRITTEN[f"examples/{name}.json"].read_text())


JOB, EVENT, HINT = (validator(name) for name in ("job", "event", "hint"))


def test_every_file_is_what_make_contract_writes(files: dict[str, str]) -> None:
    kept = {name: path.read_text() for name, path in WRITTEN.items() if not name.startswith("releases/")}

    assert sorted(files) == sorted(kept)
    assert [] == [name for name in files if files[name] != kept[name]]


# ---- events


@pytest.mark.parametrize("type_", EVENTS)
def test_an_event_of_each_type_fits_the_schema_and_is_read_as_it_was_written(type_: str) -> None:
    event = example(type_)
    EVENT.validate(event)
    read = read_event(json.dumps(event))

    assert (type_, event) == (read.type, json.loads(write_event(read)))
    assert MAX_BYTES >= len(write_event(read))


@pytest.mark.parametrize(
    "changed",
    [{"id": None}, {"at": 7}, {"type": "cancellation.unheard_of"}, {"order_id": None}, {"safe_to_refund": "perhaps"}],
    ids=str,
)
def test_what_is_no_event_does_not_fit(changed: dict[str, Any]) -> None:
    assert not EVENT.is_valid(example("cancellation.ended") | changed)


def test_what_earlier_releases_wrote_still_fits() -> None:
    releases = [json.loads(path.read_text()) for name, path in WRITTEN.items() if name.startswith("releases/")]
    for release in releases:
        for event in map(json.loads, (entry["event"] for entry in release["events"])):
            if "schema" in event:  # before 0.2 an event did not stand alone
                EVENT.validate(event)
                assert set(event) <= set(contract.MEANINGS)  # none was taken away
        for job in release["jobs"]:
            JOB.validate(job)
    assert releases


def test_a_field_that_a_later_release_adds_fits() -> None:
    EVENT.validate({**example("refund.released"), "news": {"of": "later"}})


def test_the_example_of_a_signed_entry_is_believed() -> None:
    entry = example("stream-entry")
    read = read_stream_event(entry["fields"], entry["secret"])

    assert example("refund.released") == json.loads(write_event(read))


@pytest.mark.parametrize("document", ["openapi", "asyncapi"])
def test_each_document_tells_of_each_type_with_its_example(document: str) -> None:
    text = WRITTEN[f"{document}.json"].read_text()
    told = json.loads(text)
    types = told["webhooks"] if document == "openapi" else [m["name"] for m in told["components"]["messages"].values()]

    assert {*EVENTS, *([TEST] if document == "openapi" else [])} == set(types) - {"job", "hint"}
    assert [] == [type_ for type_ in EVENTS if example(type_)["id"] not in text]


def test_each_field_has_its_meaning_and_none_is_told_in_vain() -> None:
    structs = (CancelRequest, contract.Hint, *contract.KINDS)
    fields = {name for struct in structs for name in struct.__struct_fields__}

    assert set(contract.MEANINGS) == fields


# ---- jobs and hints


@pytest.mark.parametrize("name", ["job.minimal", "job.full"])
def test_a_job_fits_the_schema_and_is_taken(name: str) -> None:
    JOB.validate(example(name))

    assert example(name) == json.loads(parse_request(json.dumps(example(name))).to_json())


def test_the_full_job_has_each_field() -> None:
    assert set(CancelRequest.__struct_fields__) == set(example("job.full"))


def test_a_hint_fits_the_schema() -> None:
    HINT.validate(golden.MINIMAL)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"connection_id": ""}, id="an empty name"),
        pytest.param({"order_id": ".."}, id="a name that vanishes from a path"),
        pytest.param({"order_id": " 1001"}, id="a space before"),
        pytest.param({"order_id": "1001 "}, id="a space behind"),
        pytest.param({"order_id": "1" * 256}, id="a long name"),
        pytest.param({"order_id": 1001}, id="a number"),
        pytest.param({"idempotency_key": "k" * 256}, id="a long key"),
        pytest.param({"priority": "high"}, id="a priority that is none"),
        pytest.param({"reason": "r" * 1001}, id="a long reason"),
        pytest.param({"requested_by": "\0"}, id="a NUL"),
        pytest.param({"batch": "b" * 256}, id="a long batch"),
        pytest.param({"metadata": {"nested": {}}}, id="nested metadata"),
        pytest.param({"send_at": "2026-11-30T12:00:00Z"}, id="a field that is none"),
        pytest.param({"connection_id": None}, id="no connection"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(changed: dict[str, Any]) -> None:
    job = {**golden.MINIMAL, **changed}

    assert not JOB.is_valid(job)
    with pytest.raises(InvalidRequest):
        parse_request(json.dumps(job))


TEXT = st.text(max_size=5) | st.sampled_from(["1001", "..", "cancel:1001", " 1", "2026-11-30T12:00:00Z", "urgent"])
VALUES = TEXT | st.none() | st.booleans() | st.integers(-9, 9) | st.dictionaries(TEXT, TEXT | st.none(), max_size=2)
FIELDS = sorted({*CancelRequest.__struct_fields__} - {*golden.MINIMAL, "traceparent"})


@given(st.fixed_dictionaries({"connection_id": TEXT, "order_id": TEXT}, optional=dict.fromkeys(FIELDS, VALUES)))
def test_whatever_is_taken_fits_the_schema(job: dict[str, Any]) -> None:
    try:
        parse_request(json.dumps(job))
    except InvalidRequest:
        return
    JOB.validate(job)
