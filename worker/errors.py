"""What a caller of `CancelClient` may catch. Knows no other file; every text says what happened and what to do.

CancelError
├── InvalidRequest              the job cannot be accepted: correct it (`worker.cancellation.request`)
├── KeyConflictError            its key belongs to another order: use another key
├── UnknownCancellationError    nothing has this id
├── TooLateError                it was sent: it cannot be taken back
├── InboxUnavailableError       Redis is away: enqueue again
└── LedgerUnavailableError      the database is away: ask again
"""

from __future__ import annotations


class CancelError(Exception):
    """The base of every error that `CancelClient` raises by itself."""


class KeyConflictError(CancelError, ValueError):
    """The idempotency key already belongs to another order of this connection."""


class UnknownCancellationError(CancelError, LookupError):
    """No cancellation has this id; the text says what to check."""


class TooLateError(CancelError, ValueError):
    """The cancellation cannot be taken back; the text says why."""


class InboxUnavailableError(CancelError, ConnectionError):
    """Redis could not be reached. Enqueue again: the same intent is the same record, however often it is sent."""


class LedgerUnavailableError(CancelError, ConnectionError):
    """The database could not be reached. What was enqueued is not lost; ask again."""
