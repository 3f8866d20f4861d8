"""What is told of an order's refund: once released, once refused, and recalled where the proof turns."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.order_proof import Proof, RefundNews, Siblings, refund_news
from worker.cancellation.status import Verdict

RELEASED, REFUSED, RECALLED = RefundNews.RELEASED, RefundNews.REFUSED, RefundNews.RECALLED
CANCELLED, NOT = Verdict.CANCELLED, Verdict.NOT_CANCELLED
ONE_IS = Siblings(any_cancelled=True, all_refused=False)
NONE_IS = Siblings(any_cancelled=False, all_refused=True)
UNDECIDED = Siblings(any_cancelled=False, all_refused=False)


@pytest.mark.parametrize(
    ("expected", "told", "proof", "siblings"),
    [
        pytest.param([RELEASED], [], Proof(CANCELLED), ONE_IS, id="the first proof releases"),
        pytest.param([], [RELEASED], Proof(CANCELLED), ONE_IS, id="a second proof says nothing new"),
        pytest.param([REFUSED], [], Proof(NOT), NONE_IS, id="the last refusal refuses"),
        pytest.param([], [], Proof(NOT), UNDECIDED, id="while another may still cancel it, nothing is refused"),
        pytest.param([], [REFUSED], Proof(NOT), NONE_IS, id="a second refusal says nothing new"),
        pytest.param([RECALLED, RELEASED], [REFUSED], Proof(CANCELLED), ONE_IS, id="a refusal that was wrong"),
        pytest.param([RECALLED], [RELEASED], Proof(NOT, contradicted=True), NONE_IS, id="a release that was wrong"),
        pytest.param([], [RELEASED], Proof(NOT, contradicted=True), ONE_IS, id="another one is proven still"),
        pytest.param([], [RELEASED], Proof(NOT), NONE_IS, id="a later refusal says nothing of the order"),
        pytest.param([], [RELEASED, RECALLED], Proof(CANCELLED), ONE_IS, id="after a recall a person decides"),
        pytest.param([], [RELEASED, RECALLED], Proof(NOT), NONE_IS, id="and nothing is refused"),
    ],
)
def test_a_proof_brings(expected: list[RefundNews], told: list[RefundNews], proof: Proof, siblings: Siblings) -> None:
    assert expected == refund_news(told, proof, siblings)


proofs = st.builds(Proof, st.sampled_from([CANCELLED, NOT]), st.booleans())


@given(st.lists(st.tuples(proofs, st.sampled_from([ONE_IS, NONE_IS, UNDECIDED])), max_size=12))
def test_no_history_tells_the_same_twice_or_recalls_what_was_not_told(steps: list[tuple[Proof, Siblings]]) -> None:
    told: list[RefundNews] = []
    for proof, siblings in steps:
        told += refund_news(told, proof, siblings)

    assert all(told.count(word) <= 1 for word in (RELEASED, REFUSED))
    assert all(told[place - 1] in {RELEASED, REFUSED} for place, word in enumerate(told) if word is RECALLED and place)
    assert [RECALLED] != told[:1]
    assert (RELEASED, REFUSED) not in product(told[:-1], told[-1:]) or RECALLED in told
