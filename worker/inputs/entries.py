"""What an entry of the inbox may weigh, and how the script that reads it tells of it. Pure; knows no Redis and no job.

Size is judged where the entry lies: one that is too long never gets into a process of ours, only its beginning and its
length do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ENTRY_BYTES = 256 * 1024  # of all fields: a job of the longest kind, wrapped twice by Celery, is half of it
MAX_BATCH_BYTES = 4 * 1024 * 1024  # of payload in one batch
KEPT_BYTES = 4 * 1024  # of what is too long to be kept whole

# What a reader of the inbox looks for, the first of them that an entry has.
JOB, CELERY, UNACKED = FIELDS = ("job", "celery", "celery_unacked")
OF_CELERY = frozenset({CELERY, UNACKED})

REFUSALS = {
    "too_large": "The message is {size} bytes long, far above what a job may hold; only its beginning is kept.",
    "kills_its_reader": "Three readers ended with this in hand; only the beginning of its {size} bytes is kept.",
}


class Entry(msgspec.Struct, frozen=True):
    """One entry as it is read: bounded, and with the one field that counts."""

    id: str
    field: str  # one of FIELDS, or empty where it has none of them; then `raw` is all its fields
    raw: bytes
    refusal: str = ""  # why it may not be looked at, one of REFUSALS; `raw` is then its beginning
    size: int = 0  # bytes, where it is refused
    stream: str = ""  # on which it lies

    @property
    def sentence(self) -> str:
        """Say why it is refused."""
        return REFUSALS[self.refusal].format(size=self.size)


def read_entries(answer: Sequence[bytes], stream: str = "") -> list[Entry]:
    """Read what the script answers: id, head and text of each entry in turn, where a head is a field or a refusal."""
    return list(_read(answer, stream))


def _read(answer: Sequence[bytes], stream: str) -> Iterator[Entry]:
    for number in range(0, len(answer), 3):
        entry_id, head, raw = answer[number : number + 3]
        field, refusal, size = [*head.decode().split(" "), "", ""][:3]
        yield Entry(entry_id.decode(), field, raw, refusal, int(size or 0), stream)


def kept_of(raw: bytes, error: str, *, whole: bool) -> tuple[bytes, str]:
    """Return what is kept of a message, and its error, which says so where that is only the beginning."""
    if whole or len(raw) <= KEPT_BYTES:
        return raw, error
    return raw[:KEPT_BYTES], f"{error} The first {KEPT_BYTES} of its {len(raw)} bytes are kept."
