"""The options by which commands choose cancellations, the same for all. Does not know what is done with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from worker.cancellation.status import Evidence, SafeToRefund, Status, Verdict
from worker.cli.signatures import with_parameters
from worker.inputs.instants import read_age, read_day_or_instant
from worker.ledger.filters import Filter

Item = TypeVar("Item")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be changed, and change nothing.")]


class Refund(StrEnum):
    """An answer to the question whether it is safe to refund, as it is typed."""

    YES = "yes"
    NO = "no"
    NOT_YET = "not-yet"


def instant(text: str) -> datetime:
    """Read what is typed as an instant. Raises typer.BadParameter."""
    if (found := read_day_or_instant(text)) is None:
        raise typer.BadParameter(f"{text!r} is no instant: write 2026-01-31, or 2026-01-31T09:30+01:00 (else UTC)")
    return found


def instant_or_age(text: str) -> datetime:
    """Read what is typed as an instant, or as so long ago. Raises typer.BadParameter."""
    age = read_age(text)
    return instant(text) if age is None else datetime.now(UTC) - timedelta(seconds=age)


def _age(text: str) -> float:
    if (found := read_age(text)) is None:
        raise typer.BadParameter(f"{text!r} is no age: write 90s, 15m, 2h, 3d or 1w")
    return found


def _member(text: str) -> tuple[str, str]:
    key, is_there, value = text.partition("=")
    if not is_there:
        raise typer.BadParameter(f"{text!r} is no pair: write key=value")
    return key, value


def _filter(
    status: Annotated[list[Status] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    verdict: Annotated[list[Verdict] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    refund: Annotated[
        Refund | None, typer.Option(help="Only where it is safe to refund: yes, no, or not yet.")
    ] = None,
    evidence: Annotated[list[Evidence] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    outcome_reason: Annotated[
        str | None, typer.Option(help="With this reason of the outcome, as it is listed.")
    ] = None,
    connection: Annotated[str | None, typer.Option("--connection", "-c", help="Of this connection only.")] = None,
    order: Annotated[str | None, typer.Option(help="Of this order id.")] = None,
    reference: Annotated[str | None, typer.Option(help="Of this reference id, without case.")] = None,
    order_number: Annotated[str | None, typer.Option(help="Of this order number, with or without its '#'.")] = None,
    batch: Annotated[str | None, typer.Option(help="Of this batch.")] = None,
    requested_by: Annotated[str | None, typer.Option(help="Asked for by them.")] = None,
    metadata: Annotated[
        list[Any] | None,
        typer.Option(parser=_member, metavar="KEY=VALUE", help="With this in its metadata; may be given again."),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=instant, metavar="TIME", help="Received since then.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(parser=instant, metavar="TIME", help="Received before.")] = None,
    older_than: Annotated[
        float | None, typer.Option(parser=_age, metavar="AGE", help="Received longer ago, such as 2h or 3d.")
    ] = None,
    newer_than: Annotated[
        float | None, typer.Option(parser=_age, metavar="AGE", help="Received later than so.")
    ] = None,
    needs_person: Annotated[
        bool, typer.Option("--needs-person", help="Only what no crawl settles: a person must look.")
    ] = False,
) -> Filter:
    return Filter(
        status=tuple(status or ()),
        verdict=tuple(verdict or ()),
        evidence=tuple(evidence or ()),
        refund=SafeToRefund[refund.name] if refund else None,
        reason=outcome_reason,
        connection_id=connection,
        order_id=order,
        reference=reference,
        order_number=order_number,
        batch=batch,
        requested_by=requested_by,
        metadata=dict(metadata or ()),
        since=since,
        until=until,
        older_than=older_than,
        newer_than=newer_than,
        needs_person=needs_person,
    )


def by_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a filter; it receives the `Filter` that they make as `which`."""
    own = inspect.signature(command, eval_str=True).parameters
    offered = inspect.signature(_filter, eval_str=True).parameters
    parameters = [*(own[name] for name in own if name != "which"), *offered.values()]

    @wraps(command)
    def run(**given: Any) -> None:
        which = _filter(**{name: given.pop(name) for name in offered})
        command(which, **given)

    return with_parameters(run, parameters)


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return a list in parts of this size."""
    return (items[start : start + size] for start in range(0, len(items), size))
