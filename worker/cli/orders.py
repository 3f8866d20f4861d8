"""Commands about cancellations: enqueue, show, list."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from worker import shared_settings
from worker.cancellation.status import Status
from worker.cli import card
from worker.cli.filters import by_filter
from worker.cli.parts import (
    Who,
    Why,
    acting,
    client,
    console,
    ledger,
    overview,
    print_beside,
    print_json,
)
from worker.cli.times import moment
from worker.cli.windows import warn_of_small_chance
from worker.errors import AlreadyEndedError, LedgerUnavailableError, UnknownCancellationError
from worker.inputs.text import csv_lines
from worker.ledger import audit, filters, queries
from worker.ledger.audit import Action, Kind
from worker.ledger.database import read_only
from worker.ledger.filters import Filter
from worker.ledger.queries import Timeline
from worker.ledger.record import DOCUMENT, Cancellation

if TYPE_CHECKING:
    from worker.client import CancelClient

MAX_SHOWN = 20  # timelines of one name
CSV_COLUMNS = [
    *(name for name in Cancellation.__struct_fields__ if name not in {*DOCUMENT, "metadata"}),
    *("metadata", "safe_to_refund"),
]

Connection = Annotated[str, typer.Option("--connection", "-c", help="The connection's id.")]


def enqueue(
    order_ids: Annotated[list[str], typer.Argument(help="One or more order ids.")],
    connection: Connection = "default",
    send_by: Annotated[str | None, typer.Option(help="ISO-8601 instant; after it the cancel is worthless.")] = None,
    priority: Annotated[str, typer.Option(help="urgent, normal or bulk.")] = "normal",
    key: Annotated[str | None, typer.Option(help="Idempotency key; default: derived from the order id.")] = None,
    requested_by: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The order's reference id, by which people look for it.")
    ] = None,
    order_number: Annotated[str | None, typer.Option(help="Its order number, as people say it.")] = None,
    batch: Annotated[str | None, typer.Option(help="The name of what is enqueued together.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until each has ended; exits 1 unless all succeeded.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each at most.")] = 300.0,
) -> None:
    """Ask for orders to be cancelled.

    Example: cancel-worker enqueue 1001 -c shop-1 --order-number '#1001' --wait
    """
    if key is not None and len(order_ids) > 1:
        raise typer.BadParameter("one key means one intent: give --key with one order id only", param_hint="--key")
    if (reference is not None or order_number is not None) and len(order_ids) > 1:
        raise typer.BadParameter("they are one order's: give --reference and --order-number with one order id only")
    jobs = [
        {
            "connection_id": connection,
            "order_id": order_id,
            "idempotency_key": key,
            "send_by": send_by,
            "priority": priority,
            "requested_by": requested_by,
            "reason": reason,
            "reference_id": reference,
            "order_number": order_number,
            "batch": batch,
        }
        for order_id in order_ids
    ]
    with closing(client()) as producer:
        ids, ended_before = _enqueued(producer, jobs)
        if ended_before != set(ids):
            warn_of_small_chance(connection)
        if wait:
            ended = [producer.wait(record_id, timeout) for record_id in ids]
            console.print(overview(ended))
            if any(found.status != Status.SUCCEEDED for found in ended):
                raise typer.Exit(1)
            return
        for order_id, record_id in zip(order_ids, ids, strict=True):
            if record_id not in ended_before:
                console.print(f"{record_id}  {order_id}", soft_wrap=True)
        if ended_before:
            raise typer.Exit(1)
        _print_expected(producer, connection, priority)


def _enqueued(producer: CancelClient, jobs: list[dict[str, Any]]) -> tuple[list[str], set[str]]:
    """Enqueue these; return their ids, and those of them that have ended before."""
    try:
        return producer.enqueue_many(jobs), set()
    except AlreadyEndedError as error:
        console.print(str(error), style="red", soft_wrap=True)
        return error.ids, {found.id for found in error.cancellations}


def _print_expected(producer: CancelClient, connection_id: str, priority: str) -> None:
    try:
        due, hold = producer.next_turn(connection_id, priority)
    except LedgerUnavailableError:
        return  # what was enqueued is safe; only nobody knows when it is sent
    if hold:
        console.print(f"It waits: the connection is held ({hold}).", style="yellow")
    elif due:
        console.print(f"Expected to be sent from {moment(due)} on.")


def show(
    name: Annotated[str, typer.Argument(help="A cancellation's id, an order id, a reference id or an order number.")],
    connection: Annotated[str | None, typer.Option("--connection", "-c", help="Of this connection only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="With the order as Trackstar returned it: personal data; it is audited.")
    ] = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Tell what happened to one order's cancel, and whether it is safe to refund.

    Example: cancel-worker show '#1001' -c shop-1
    """
    policy = shared_settings.policy()
    with ledger(by_index=True) as opened, read_only(opened) as db:
        page = filters.find_page(db, Filter(name=name, connection_id=connection), limit=MAX_SHOWN)
        timelines = [
            found
            for record_id in (name, *(each.id for each in page.found))
            if (found := queries.timeline(db, record_id, policy, snapshot=reveal))
        ]
    if not timelines:
        raise UnknownCancellationError(
            f"Nothing in the ledger has the id, the order id, the reference or the number {name!r}. A job enqueued a "
            "moment ago may still be on the inbox; one that could not be read is among the dead letters."
        )
    if reveal:
        by = acting(who, reason)
        with ledger() as opened, opened.begin() as db:
            for found in timelines:
                audit.write(db, by, Action.REVEAL, Kind.CANCELLATION, found.cancellation.id)
    with closing(client()) as asked:
        for found in timelines:
            expected = asked.expected_at(found.cancellation.id)
            if as_json:
                print_json({**_as_json(found, reveal=reveal), "expected_at": expected})
            else:
                card.print_card(found, expected)
    if page.after:
        print_beside(
            f"There are more than {MAX_SHOWN}: see `cancel-worker list` with --order, --reference or --order-number."
        )


@by_filter
def list_(
    which: Filter,
    reason: Annotated[str | None, typer.Option(help="The same as --outcome-reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Go on behind this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="For a spreadsheet: a header, and one line each.")] = False,
) -> None:
    """List cancellations, the newest first.

    Example: cancel-worker list --refund not-yet --older-than 2h -c shop-1
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    which = msgspec.structs.replace(which, reason=reason or which.reason)
    with ledger(by_index=True) as opened, read_only(opened) as db:
        page = filters.find_page(db, which, limit=limit, after=after, policy=shared_settings.policy())
    if as_json:
        for row in page.found:
            print_json(_without_document(row))
    elif as_csv:
        print("\n".join(csv_lines([_without_document(row) for row in page.found], CSV_COLUMNS)))  # noqa: T201
    else:
        console.print(overview(page.found))
    if page.looked_back_to:
        print_beside(f"Looked back to {moment(page.looked_back_to)} and not further. To go on: --after {page.after}")
    elif page.after:
        print_beside(f"There are more. To go on: --after {page.after}")


def _without_document(found: Cancellation) -> dict[str, Any]:
    fields = {name: value for name, value in msgspec.structs.asdict(found).items() if name not in DOCUMENT}
    return {**fields, "safe_to_refund": found.safe_to_refund}


def _as_json(found: Timeline, *, reveal: bool) -> dict[str, Any]:
    return {
        **_without_document(found.cancellation),
        **({"order_snapshot": card.document_of(found.cancellation)} if reveal else {}),
        "because": card.because(found.cancellation),
        "what_to_do": card.what_to_do(found.cancellation),
        "attempts_made": found.attempts,
        "events": found.events,
        "acts": found.acts,
    }
