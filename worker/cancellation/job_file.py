"""Jobs in a file: CSV whose header uses the job's field names, or one JSON object a line. Pure: it is given lines.

Every line is read by the rules of one job; what is wrong with a line is told with its number, and the next is read.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import msgspec

from worker.cancellation.request import CancelRequest, InvalidRequest, make_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FIELDS = tuple(name for name in CancelRequest.__struct_fields__ if name != "requested_at")
NEEDED = "order_id"
DELIMITERS = ",;\t"  # of which the header holds the most; a spreadsheet writes its country's


class FileLine(msgspec.Struct, frozen=True):
    """One job of a file: what it asks for, or what is wrong with it."""

    number: int  # of its first line, from 1
    job: dict[str, Any] | None = None
    problem: str = ""


class UnreadableFileError(ValueError):
    """The file as a whole is none of jobs; the text says what to correct."""


def read_jobs(lines: Iterable[str], stated: Mapping[str, Any]) -> Iterator[FileLine]:
    """Read the jobs of a file's lines; what a line leaves out, `stated` says. Raises UnreadableFileError."""
    numbered = _without_blank_start(lines)
    first = next(numbered, None)
    if first is None:
        raise UnreadableFileError("The file is empty: it needs a header and a line for each job.")
    number, text = first
    if text.lstrip().startswith("["):
        raise UnreadableFileError("The file is one JSON array: write one JSON object a line, without the brackets.")
    if text.lstrip().startswith("{"):
        yield from _read_json(number, text, numbered, stated)
    else:
        yield from _read_csv(number, text, numbered, stated)


def _without_blank_start(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    started = False
    for number, line in enumerate(lines, 1):
        text = line if number > 1 else line.removeprefix("\ufeff")
        started |= bool(text.strip())
        if started:
            yield number, text


def _read_json(
    number: int, first: str, others: Iterator[tuple[int, str]], stated: Mapping[str, Any]
) -> Iterator[FileLine]:
    yield _checked(number, _object_of(first), stated)
    for at, text in others:
        if text.strip():
            yield _checked(at, _object_of(text), stated)


def _object_of(text: str) -> dict[str, Any] | str:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return f"It is not one JSON object: {error}."


def _read_csv(
    number: int, first: str, others: Iterator[tuple[int, str]], stated: Mapping[str, Any]
) -> Iterator[FileLine]:
    delimiter = max(DELIMITERS, key=first.count)
    names = _header(next(csv.reader([first], delimiter=delimiter)))
    rows = csv.reader((text for _, text in others), delimiter=delimiter, strict=True)
    while True:
        at = number + rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield FileLine(at, problem=f"It is no line of CSV: {error}.")
            continue
        if any(cell.strip() for cell in cells):
            yield _checked(at, _row(names, cells), stated)


def _header(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    known = f"a job's fields are {', '.join(FIELDS)}"
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UnreadableFileError(f"The header names {unknown[0]!r}, which is no field of a job: {known}.")
    if NEEDED not in names or len(set(names)) < len(names):
        raise UnreadableFileError(f"The header must name {NEEDED}, and each field once: {known}.")
    return names


def _row(names: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) > len(names):
        return f"It has {len(cells)} cells, and the header names {len(names)}."
    job: dict[str, Any] = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
    if "metadata" in job:
        metadata = _object_of(job["metadata"])
        if isinstance(metadata, str):
            return f"`metadata`: {metadata}"
        job["metadata"] = metadata
    return job


def _checked(number: int, job: dict[str, Any] | str, stated: Mapping[str, Any]) -> FileLine:
    if isinstance(job, str):
        return FileLine(number, problem=job)
    whole = {**stated, **{name: value for name, value in job.items() if value is not None}}
    try:
        make_request(whole)
    except InvalidRequest as error:
        return FileLine(number, problem=str(error))
    return FileLine(number, whole)
