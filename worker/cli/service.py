"""Commands that run something: the worker, the schema's migration, the sandbox, the health check."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from worker.cli.parts import console, ledger
from worker.ledger import migrating
from worker.settings import load_worker_settings


def run(
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once; default CONCURRENCY.")] = None,
    name: Annotated[str, typer.Option(help="The worker's name; must differ on one machine.")] = "cancel@%h",
) -> None:
    """Run the worker until it is told to stop (SIGTERM finishes what is in flight)."""
    if concurrency is not None:
        os.environ["CONCURRENCY"] = str(concurrency)
    load_worker_settings()  # refuses to start in one sentence, before anything runs
    with ledger().connect() as opened:
        found, wanted = migrating.current(opened), migrating.head()
    if found != wanted:
        raise ValueError(
            f"The ledger's schema is {found or 'empty'}, this worker needs {wanted}: run `cancel-worker migrate`."
        )
    from worker.celery_app import app  # noqa: PLC0415 - Celery is loaded by the one command that needs it

    app.worker_main(["worker", "--loglevel", "INFO", "--hostname", name, "--without-gossip", "--without-mingle"])


def migrate() -> None:
    """Bring the ledger's schema up to date. Safe to run twice, and beside running workers."""
    migrating.migrate(ledger())
    console.print(f"The ledger is at revision {migrating.head()}.", highlight=False)


def sandbox(
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8900,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    api_key: Annotated[
        str, typer.Option(help="What it accepts as the API key; it guards nothing real.")
    ] = "sandbox-api-key",
    token: Annotated[str, typer.Option(help="The access token of its one connection, `default`.")] = "sandbox-token",  # noqa: S107
    script: Annotated[
        list[str] | None, typer.Option(help="ORDER=STEP,STEP... for example A-1=503,applied_then:500; repeatable.")
    ] = None,
    sync_seconds: Annotated[float, typer.Option(min=0, help="How often reads see the warehouse's truth.")] = 3600.0,
) -> None:
    """Run a local Trackstar: the documented contract, scripted faults. Any order id springs into being as open."""
    from worker.trackstar.sandbox import Sandbox, serve  # noqa: PLC0415

    scripts = dict(_script(text) for text in script or ())

    def prepare(running: Sandbox) -> None:
        running.world.connect("default", access_token=token)
        for order_id, steps in scripts.items():
            running.world.add_order("default", order_id, script=steps)
        for name, value in (("BASE_URL", running.url), ("API_KEY", api_key), ("ACCESS_TOKEN", token)):
            console.print(f"export TRACKSTAR_{name}={value}", soft_wrap=True, highlight=False)

    try:
        serve(host, port, api_key=api_key, sync_seconds=sync_seconds, unknown_orders="open", ready=prepare)
    except OSError as error:
        raise ValueError(
            f"The sandbox cannot listen on {host}:{port} ({error.strerror}): choose another --port."
        ) from error


def _script(text: str) -> tuple[str, list[str]]:
    order_id, equals, steps = text.partition("=")
    if not (order_id and equals and steps):
        raise typer.BadParameter(f"{text!r} is no script: write ORDER=STEP,STEP...", param_hint="--script")
    return order_id, re.split(r"\s*,\s*", steps)


def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it takes what is due, not only whether it runs.")
    ] = False,
    port: Annotated[int, typer.Option(envvar="HEALTH_PORT", help="Where the worker answers.")] = 8080,
) -> None:
    """Exit 0 while the worker on this machine is alive (or ready). For a container's health check."""
    import requests  # noqa: PLC0415 - a check runs every few seconds and needs little else

    try:
        answer = requests.get(f"http://127.0.0.1:{port}/{'readyz' if ready else 'livez'}", timeout=5)
        problems = answer.json()["problems"]
    except (requests.RequestException, ValueError, KeyError):
        problems = [f"No worker answers on port {port}: start it with HEALTH_PORT={port}."]
    for problem in problems:
        console.print(problem, highlight=False)
    raise typer.Exit(1 if problems else 0)
