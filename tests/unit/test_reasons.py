"""Every reason that a request or an outcome may have is told in a sentence of its own."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import pytest

import worker.cancellation.lifecycle
import worker.cancellation.outcome
import worker.ledger.attempts
import worker.runtime.attempt
from worker.cancellation.answer import NoReplyReason
from worker.cli.reasons import IN_WORDS, in_words

PLACES = [
    worker.cancellation.outcome,
    worker.cancellation.lifecycle,
    worker.ledger.attempts,
    worker.runtime.attempt,
]


def reasons_in_the_code() -> set[str]:
    text = "\n".join(inspect.getsource(place) for place in PLACES)
    calls = re.findall(r'_outcome\(\s*Kind\.[A-Z_]+,\s*"([a-z_]+)"', text)
    ends = re.findall(r'_end_unproven\(Status\.[A-Z]+, state, "([a-z_]+)"', text)
    named = re.findall(r'\breason="([a-z_]+)"', text)
    constants = re.findall(
        r'^(?:ORDER_NOT_FOUND|NOT_FOUND_YET|WORKER_LOST|NOT_SUPPORTED) = "([a-z_]+)"', text, re.MULTILINE
    )
    table = re.findall(r'HTTPStatus\.[A-Z_]+: "([a-z_]+)"', text)
    chosen = re.findall(r'"([a-z_]+)" if [^\n]+ else "([a-z_]+)"', text)
    return {*calls, *ends, *named, *constants, *table, *(word for pair in chosen for word in pair)}


def test_every_reason_has_words_and_no_words_are_for_nothing() -> None:
    written = reasons_in_the_code() | set(get_args(NoReplyReason)) | {"refused"}

    assert {"accepted", "read_open", "worker_lost", "send_by_passed", "unauthorized", "not_json"} <= written
    assert set(IN_WORDS) == written


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("the answer was HTTP 503 (Service Unavailable)", "http_503"),
        ("the answer was HTTP 799", "http_799"),
        ("http_", "http_"),
        ("http_x", "http_x"),
        ("of a later release", "of a later release"),
        ("", ""),
    ],
)
def test_the_status_of_an_answer_is_told_and_what_is_not_known_stays_as_it_is(words: str, reason: str) -> None:
    assert words == in_words(reason)
