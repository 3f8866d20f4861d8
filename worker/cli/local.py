"""Commands for a machine without Trackstar: the demo and the sandbox. The only ones that use `worker.dev`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worker.cli.parts import console, refund
from worker.errors import InboxUnavailableError

if TYPE_CHECKING:
    from worker.dev.sandbox import Sandbox


def demo() -> None:
    """Show it all in a minute: Redis, SQLite, a local Trackstar, the worker, Flower. KEEP=1 leaves it up.

    Example: cancel-worker demo
    """
    from worker.dev.demo import play  # noqa: PLC0415 - none of it is loaded in production
    from worker.dev.embedded import NoRedisServerError  # noqa: PLC0415

    try:
        well = play(console, refund)
    except NoRedisServerError as error:
        raise InboxUnavailableError(str(error)) from error
    if not well:
        raise typer.Exit(1)


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
    sync_seconds: Annotated[
        float, typer.Option(min=0, help="How often a crawl renews what reads show; 0: they show the truth.")
    ] = 3600.0,
    crawl_length: Annotated[float, typer.Option(min=0, help="How many seconds a crawl takes.")] = 0.0,
    crawl_state: Annotated[
        Literal["enabled", "disabled", "stuck", "error"],
        typer.Option(help="Whether crawls come at all: none begin, one never ends, each fails."),
    ] = "enabled",
) -> None:
    """Run a local Trackstar: the documented contract, scripted faults. Any order id springs into being as open.

    While it runs, JSON posted to /_sandbox/connections changes its crawls ({"id": "default", "crawl_state": "stuck"}),
    to /_sandbox/sync ends one at once; /_sandbox/orders/cancel, .../edit and .../ship are other people.

    Example: cancel-worker sandbox --script A-1=503,applied_then:500
    """
    from worker.dev.sandbox import serve  # noqa: PLC0415

    scripts = dict(_script(text) for text in script or ())

    def prepare(running: Sandbox) -> None:
        running.world.connect("default", access_token=token)
        for order_id, steps in scripts.items():
            running.world.add_order("default", order_id, script=steps)
        for name, value in (("BASE_URL", running.url), ("API_KEY", api_key), ("ACCESS_TOKEN", token)):
            console.print(f"export TRACKSTAR_{name}={value}", soft_wrap=True)

    try:
        serve(
            host,
            port,
            api_key=api_key,
            ready=prepare,
            unknown_orders="open",
            sync_seconds=sync_seconds,
            crawl_length=crawl_length,
            crawl_state=crawl_state,
        )
    except OSError as error:
        raise ValueError(
            f"The sandbox cannot listen on {host}:{port} ({error.strerror}): choose another --port."
        ) from error


def _script(text: str) -> tuple[str, list[str]]:
    order_id, equals, steps = text.partition("=")
    if not (order_id and equals and steps):
        raise typer.BadParameter(f"{text!r} is no script: write ORDER=STEP,STEP...", param_hint="--script")
    return order_id, re.split(r"\s*,\s*", steps)
