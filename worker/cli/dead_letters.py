"""Commands about messages that could not be read: look at them, send them again, corrected where that is needed."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from worker.cancellation.request import parse_request
from worker.cli.parts import Who, Why, acting, client, console, ledger, recorded
from worker.cli.times import moment
from worker.ledger import dead_letters
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.streams import INBOX, producer_of

app = typer.Typer(
    help="See and requeue messages that could not be read.\n\nExample: cancel-worker dead-letters list",
    no_args_is_help=True,
)

Number = Annotated[int, typer.Argument(min=1, max=2**63 - 1, metavar="ID", help="Its number in `dead-letters list`.")]


@app.command(name="list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were requeued.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
) -> None:
    """List dead letters, the newest first.

    Example: cancel-worker dead-letters list --all
    """
    with ledger() as opened, read_only(opened) as db:
        found = dead_letters.find(db, requeued=everything, limit=limit)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("id", "received", "from", "reason", "error", "bytes", "requeued"):
        table.add_column(column, overflow="fold")
    for letter in found:
        table.add_row(
            str(letter.id),
            moment(letter.received_at),
            letter.source,
            letter.reason,
            letter.error,
            str(len(letter.raw)),
            moment(letter.requeued_at),
        )
    console.print(table)


@app.command()
def show(
    number: Number,
    raw: Annotated[bool, typer.Option("--raw", help="Only its bytes, to be corrected in a file.")] = False,
) -> None:
    """Show one dead letter. Its bytes may hold anything, also personal data.

    Example: cancel-worker dead-letters show 7
    """
    with ledger() as opened, read_only(opened) as db:
        letter = dead_letters.get(db, number)
    if raw:
        if sys.stdout.isatty():
            raise ValueError("--raw writes bytes that a terminal may obey: send them into a file, as in `> job.json`.")
        sys.stdout.buffer.write(letter.raw)
        return
    console.print(f"Dead letter {letter.id}, from {letter.source}", style="bold")
    console.print(f"{letter.reason}: {letter.error}")
    console.print(f"received {moment(letter.received_at)}")
    if letter.requeued_at:
        console.print(f"requeued {moment(letter.requeued_at)}")
    # As Python writes bytes: nothing in it can play with the terminal.
    console.print(Text(repr(letter.raw)), soft_wrap=True)


@app.command()
def requeue(
    number: Number,
    job: Annotated[
        Path | None, typer.Option(help="A file with the corrected job, one JSON object; - reads standard input.")
    ] = None,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Put the job of a dead letter on its inbox again, as it came or corrected.

    Example: cancel-worker dead-letters requeue 7 --job corrected.json
    """
    by = acting(who, reason)
    with ledger() as opened, read_only(opened) as db:
        letter = dead_letters.get(db, number)
    text = _job_of(letter) if job is None else _read(job)
    request = parse_request(text)  # the same judgement as the intake's, before anything is sent
    with closing(client(producer=_producer_of(letter))) as producer:
        producer.enqueue_many([msgspec.structs.asdict(request)])
    made = {"cancellation_id": request.record_id}
    with recorded(by, Action.REQUEUE, Kind.DEAD_LETTER, [number], **made) as db:
        dead_letters.note_requeued(db, number)
    console.print(f"{request.record_id}  {request.order_id}")


def _producer_of(letter: dead_letters.DeadLetterRow) -> str | None:
    """Return by whose rights it is judged again: those of the producer on whose inbox it came."""
    return producer_of(letter.source) if letter.source.startswith(INBOX) else None


def _job_of(letter: dead_letters.DeadLetterRow) -> bytes:
    if letter.source.startswith(INBOX):
        return letter.raw
    raise ValueError(
        f"Dead letter {letter.id} came from {letter.source} and is no job that could be sent again as it is: write "
        "the job into a file and give it with --job."
    )


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
