"""The command `doctor`: looks at every part a worker needs, and says what to do about each that is not well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from worker.cli.doctor.asking import Part, ask
from worker.cli.doctor.connections import look_at_connections
from worker.cli.doctor.ledger import look_at_ledger
from worker.cli.doctor.outside import look_at_flower, look_at_sentry, send_test
from worker.cli.doctor.program import look_at_program, settings_in_force
from worker.cli.doctor.proof import proof_findings
from worker.cli.doctor.redis import look_at_redis
from worker.cli.doctor.redis_sentinel import look_at_sentinels
from worker.cli.doctor.workers import look_at_workers
from worker.cli.parts import console, print_json
from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.cli.doctor.finding import Colour, Finding

PARTS = (
    Part("Program", look_at_program),
    Part("Redis", look_at_redis, "Check REDIS_URL, and the network between here and there."),
    Part("Sentinel", look_at_sentinels, "Check REDIS_URL, and the network between here and the sentinels."),
    Part("Ledger", look_at_ledger, "Check DATABASE_URL, and the network between here and there."),
    Part("Workers", look_at_workers),
    Part("Connections", look_at_connections),
    Part("Proof", proof_findings),
    Part("Flower", look_at_flower),
)
SENTRY = Part("Sentry", look_at_sentry)
SENTRY_TEST = Part("Sentry", send_test, "Check SENTRY_DSN, and the network between here and its host.")
MARKS: dict[Colour, str] = {"green": "✓", "yellow": "!", "red": "✗"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one object.")] = False,
    send_a_test: Annotated[bool, typer.Option("--send-test", help="Send a test event to Sentry.")] = False,
) -> None:
    """Check settings, Redis, the ledger, workers, Trackstar and every connection, Flower and Sentry.

    Green is well, yellow needs a look, red needs a person: then it exits 1. It ends within ten seconds.

    Example: cancel-worker doctor --json
    """
    settings = load_settings()
    findings = ask([*PARTS, SENTRY_TEST if send_a_test else SENTRY], settings)
    worst = _worst(findings)
    if as_json:
        followed = msgspec.to_builtins(settings_in_force(settings))
        print_json({"colour": worst, "findings": [each.told() for each in findings], "settings": followed})
    else:
        console.print(_table(findings))
    if worst == "red":
        raise typer.Exit(1)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for each in findings:
        table.add_row(Text(MARKS[each.colour], each.colour), each.part, each.said, each.remedy)
    return table


def _worst(findings: list[Finding]) -> Colour:
    return max((each.colour for each in findings), key=list(MARKS).index)
