"""The command `migrate`: the ledger's schema, brought up to date, compared, or as SQL for whoever does it by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.parts import console, ledger
from worker.ledger import migrations
from worker.ledger.migration_scripts import script
from worker.ledger.migrations import Fit

if TYPE_CHECKING:
    from sqlalchemy import Engine

# What `--check` ends with; 2 and 3 mean what they mean everywhere.
EXIT_CODES = {Fit.FITS: 0, Fit.DUE: 1, Fit.MISSING: 4, Fit.NEWER: 5}
_SENTENCES = {
    Fit.FITS: "The ledger's schema is {found}, as this version needs it.",
    Fit.DUE: "The ledger's schema is {found}, this version needs {head}: run `cancel-worker migrate`.",
    Fit.MISSING: "The ledger has no schema yet, this version needs {head}: run `cancel-worker migrate`.",
    Fit.NEWER: "The ledger's schema is {found}, which a newer cancel-worker has made. This version works on it, if it "
    "is the release before.",
}


def migrate(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Change nothing, compare: exits 0 where the schema fits this version, 1 where a migration is due, "
            "4 where there is none yet, 5 where it is newer.",
        ),
    ] = False,
    as_sql: Annotated[
        bool, typer.Option("--sql", help="Change nothing: print the SQL, for psql or sqlite3 to run.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="With --sql: from this revision (base: from nothing), without asking the database for its own.",
        ),
    ] = None,
) -> None:
    """Bring the ledger's schema up to date. Safe to run twice, and beside running workers.

    Example: cancel-worker migrate
    """
    if check and (as_sql or since):
        raise typer.BadParameter("it compares, and prints no SQL", param_hint="--check")
    if since and not as_sql:
        raise typer.BadParameter("it is of --sql: name both", param_hint="--from")
    with ledger() as opened:
        if check:
            raise typer.Exit(_compare(opened))
        if as_sql:
            _print_sql(opened, since)
            return
        migrations.migrate(opened, waiting=console.print)
    console.print(f"The ledger is at revision {migrations.head()}.")


def _compare(opened: Engine) -> int:
    found = migrations.current_of(opened)
    fit = migrations.compare(found)
    console.print(_SENTENCES[fit].format(found=found, head=migrations.head()))
    return EXIT_CODES[fit]


def _print_sql(opened: Engine, since: str | None) -> None:
    if since is None:
        migrations.refuse_newer(since := migrations.current_of(opened))
    print(script(opened.dialect.name, since), end="")  # noqa: T201 - for another program, as it is
