"""Commands that run something: the worker, the health check."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from worker.cli.parts import console, ledger
from worker.environment import from_environment
from worker.ledger import migrations
from worker.ledger.database import read_only
from worker.ledger.problems import ledger_problem, passes
from worker.settings import load_worker_settings
from worker.telemetry.logs import print_without_blocking
from worker.version import __version__


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"cancel-worker {__version__}")
        raise typer.Exit


def cancel_worker(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    # The help of the program is the app's.
    pass


def run(
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once; default CONCURRENCY.")] = None,
    name: Annotated[str, typer.Option(help="The worker's name; must differ on one machine.")] = "cancel@%h",
) -> None:
    """Run the worker until it is told to stop (SIGTERM finishes what is in flight).

    Example: cancel-worker run --concurrency 64
    """
    if concurrency is not None:
        os.environ["CONCURRENCY"] = str(concurrency)
        os.environ.pop("CONCURRENCY_FILE", None)
    load_worker_settings()  # refuses to start in one sentence, before anything runs
    _check_schema()
    print_without_blocking()  # Celery warns and prints before it asks for logs
    from worker.broker.app import app  # noqa: PLC0415 - Celery is loaded by the one command that needs it

    app.worker_main(["worker", "--loglevel", "INFO", "--hostname", name, "--without-gossip", "--without-mingle"])


def _check_schema() -> None:
    """Refuse a ledger that no waiting mends. One that is not there yet the worker waits for, alive and not ready."""
    try:
        with ledger() as opened, read_only(opened) as db:
            migrations.refuse_unfit(db)
    except DBAPIError as error:
        if not passes(error):
            raise
        console.print(f"{ledger_problem(error)} The worker starts and waits for it.")


def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it takes what is due, not only whether it runs.")
    ] = False,
    port: Annotated[int, typer.Option(envvar="HEALTH_PORT", help="Where the worker answers.")] = 8080,
) -> None:
    """Exit 0 while the worker on this machine is alive (or ready). For a container's health check.

    Example: cancel-worker health --ready --port 8080
    """
    import requests  # noqa: PLC0415 - a check runs every few seconds and needs little else

    address = from_environment("HEALTH_ADDRESS") or "127.0.0.1"
    host = f"[{address.strip('[]')}]" if ":" in address else address
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment leads away from this machine
            answer = session.get(f"http://{host}:{port}/{'readyz' if ready else 'livez'}", timeout=5)
        problems = answer.json()["problems"]
    except (requests.RequestException, ValueError, KeyError, TypeError):
        problems = [f"No worker answers on port {port}: start it with HEALTH_PORT={port}."]
    for problem in problems:
        console.print(problem)
    raise typer.Exit(1 if problems else 0)
