"""What a caller is told who asks whether it is safe to refund: the answer, with its time. Pure; knows no row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from datetime import datetime


class RefundAnswer(str):
    """`yes`, `no` or `not yet`, equal to that word and to the member of `SafeToRefund`. It cannot be changed.

    `as_of` is the instant of which a yes or no is true. A *not yet* has `known_by`, the instant by which it is known,
    or else `needs_person`, why a person must settle it; neither where the ledger does not know the id.
    """

    __slots__ = ("as_of", "known_by", "needs_person")

    as_of: datetime | None
    known_by: datetime | None
    needs_person: str | None

    def __new__(
        cls,
        answer: str,
        as_of: datetime | None = None,
        known_by: datetime | None = None,
        needs_person: str | None = None,
    ) -> Self:
        self = super().__new__(cls, answer)
        for name, value in (("as_of", as_of), ("known_by", known_by), ("needs_person", needs_person)):
            object.__setattr__(self, name, value)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an answer cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an answer cannot be changed: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return RefundAnswer, (str(self), self.as_of, self.known_by, self.needs_person)
