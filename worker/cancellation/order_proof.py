"""Which event about money the proof of an order brings, over all its cancellations. Pure; knows no row.

At most one release and one refusal of an order is ever told. Where the proof turns after a release, it is recalled,
and whoever refunded by it hears so; what is proven after that, a person settles: it is never released again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from worker.cancellation.status import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable


class RefundNews(StrEnum):
    """What is told of an order's refund; `refund.` before it is the type of the event."""

    RELEASED = "released"  # proven cancelled: pay it back
    REFUSED = "refused"  # proven that no cancellation of it cancelled it
    RECALLED = "recalled"  # what was told last is not so


class Proof(msgspec.Struct, frozen=True):
    """One cancellation of the order whose verdict has just been proven."""

    verdict: Verdict
    contradicted: bool = False  # it was said or shown to be cancelled, and the goods left


def refund_news(told: Iterable[RefundNews], proof: Proof, *, all_refused: bool) -> list[RefundNews]:
    """Return what is told next of an order, of which so much was told before, the last one last.

    `all_refused`: each cancellation of the order has ended, and is proven not to have cancelled it. Goods that left
    recall a release whatever its other cancellations were told: they are the same goods.
    """
    before = list(told)
    last = before[-1] if before else None
    if proof.verdict is Verdict.CANCELLED:
        if RefundNews.RELEASED in before:
            return []
        return [RefundNews.RECALLED, RefundNews.RELEASED] if last is RefundNews.REFUSED else [RefundNews.RELEASED]
    if last is RefundNews.RELEASED:
        return [RefundNews.RECALLED] if proof.contradicted else []
    return [RefundNews.REFUSED] if last is None and all_refused else []
