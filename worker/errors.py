"""What a caller of `CancelClient` may catch. Knows no other file; every text says what happened and what to do.

CancelError
├── InvalidRequest              the job cannot be accepted: correct it (`worker.cancellation.request`)
├── KeyConflictError            its key belongs to another order: use another key
├── AlreadyEndedError           it has ended before: replay it, or state a new intent with a key of its own
├── UnknownCancellationError    nothing has this id
├── TooLateError                it was sent, or has ended: it cannot be taken back or changed
├── EventError                  an entry of the stream of events is not to be believed: ask the ledger
├── CursorError                 the feed of events has never come so far: another ledger, or a restored one
├── InboxUnavailableError       Redis is away or refuses: the text says why; enqueue again
└── LedgerUnavailableError      the database is away: ask again
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class CancelError(Exception):
    """The base of what `CancelClient` raises, but for TimeoutError of `wait` and ValueError for its settings."""


class KeyConflictError(CancelError, ValueError):
    """The idempotency key already belongs to another order of this connection."""


class AlreadyEndedError(CancelError, ValueError):
    """Intents that have ended already, so nothing is sent for them; the text says how they stand and what to do.

    `cancellations` are their records as they stand (`worker.Cancellation`); none where the ledger went away just then.
    `ids` are the records of all jobs of the call, in order: those that have not ended were enqueued.
    """

    def __init__(self, sentence: str, cancellations: Sequence[Any], ids: Sequence[str]) -> None:
        super().__init__(sentence)
        self.cancellations = tuple(cancellations)
        self.ids = list(ids)


class UnknownCancellationError(CancelError, LookupError):
    """No cancellation has this id; the text says what to check."""


class TooLateError(CancelError, ValueError):
    """The cancellation cannot be taken back or changed; the text says why."""


class EventError(CancelError, ValueError):
    """An entry of the stream is no event, or not signed by the secret that is expected; the text says which."""


class CursorError(CancelError, ValueError):
    """The cursor is none of this feed of events; the text says why, and how to go on."""


class InboxUnavailableError(CancelError, ConnectionError):
    """Redis is away or takes nothing; the text says why. Enqueue again: the same intent stays one record."""


class LedgerUnavailableError(CancelError, ConnectionError):
    """The database could not be reached, or DATABASE_URL is not set. What was enqueued is not lost; ask again."""
