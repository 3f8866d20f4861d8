"""What is told of an order's refund: once released, once refused, and recalled where the proof turns."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.order_proof import Proof, RefundNews, refund_news
from worker.cancellation.status import Verdict

RELEASED, REFUSED, RECALLED = RefundNews.RELEASED, RefundNews.REFUSED, RefundNews.RECALLED
CANCELLED, NOT = Verdict.CANCELLED, Verdict.NOT_CANCELLED
NOT_ALL, ALL = False, True  # of its cancellations are refused


@pytest.mark.parametrize(
    ("expected", "told", "proof", "all_refused"),
    [
        pytest.param([RELEASED], [], Proof(CANCELLED), NOT_ALL, id="the first proof releases"),
        pytest.param([], [RELEASED], Proof(CANCELLED), NOT_ALL, id="a second proof says nothing new"),
        pytest.param([REFUSED], [], Proof(NOT), ALL, id="the last refusal refuses"),
        pytest.param([], [], Proof(NOT), NOT_ALL, id="while another may still cancel it, nothing is refused"),
        pytest.param([], [REFUSED], Proof(NOT), ALL, id="a second refusal says nothing new"),
        pytest.param([RECALLED, RELEASED], [REFUSED], Proof(CANCELLED), NOT_ALL, id="a refusal that was wrong"),
        pytest.param([RECALLED], [RELEASED], Proof(NOT, contradicted=True), ALL, id="a release that was wrong"),
        pytest.param([RECALLED], [RELEASED], Proof(NOT, contradicted=True), NOT_ALL, id="they are the same goods"),
        pytest.param([], [RELEASED], Proof(NOT), ALL, id="a later refusal says nothing of the order"),
        pytest.param([], [RELEASED, RECALLED], Proof(CANCELLED), NOT_ALL, id="after a recall a person decides"),
        pytest.param([], [RELEASED, RECALLED], Proof(NOT), ALL, id="and nothing is refused"),
    ],
)
def test_a_proof_brings(expected: list[RefundNews], told: list[RefundNews], proof: Proof, all_refused: bool) -> None:
    assert expected == refund_news(told, proof, all_refused=all_refused)


proofs = st.builds(Proof, st.sampled_from([CANCELLED, NOT]), st.booleans())


@given(st.lists(st.tuples(proofs, st.sampled_from([NOT_ALL, ALL])), max_size=12))
def test_no_history_tells_the_same_twice_or_recalls_what_was_not_told(steps: list[tuple[Proof, bool]]) -> None:
    told: list[RefundNews] = []
    for proof, all_refused in steps:
        told += refund_news(told, proof, all_refused=all_refused)

    assert all(told.count(word) <= 1 for word in (RELEASED, REFUSED))
    assert all(told[place - 1] in {RELEASED, REFUSED} for place, word in enumerate(told) if word is RECALLED and place)
    assert [RECALLED] != told[:1]
    assert (RELEASED, REFUSED) not in product(told[:-1], told[-1:]) or RECALLED in told
