"""The command `cancel-worker`. Every error is one sentence with what to do; a traceback never reaches a person.

Exit codes: 0 done, 1 not as hoped, 2 wrong input or settings, 3 a part (Redis, the ledger) could not be reached.
`migrate --check` has two more.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import sentry_sdk
import typer
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.request import InvalidRequest
from worker.cli import (
    audit,
    batches,
    changes,
    connections,
    dead_letters,
    doctor,
    endpoint_sends,
    endpoints,
    enqueue_file,
    events,
    forget,
    local,
    one_connection,
    orders,
    producers,
    rekey,
    repair,
    schema,
    service,
    windows,
)
from worker.cli.one_connection import NoLinkError, TrackstarAwayError
from worker.cli.parts import SafeConsole, scrubbed
from worker.cli.times import with_utc
from worker.environment import SettingsError
from worker.errors import (
    AlreadyEndedError,
    CursorError,
    InboxUnavailableError,
    KeyConflictError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.inputs.faults import remedy_of
from worker.ledger.confirmations import NotResolvableError
from worker.ledger.dead_letters import UnknownDeadLetterError
from worker.ledger.migrations import SchemaError
from worker.ledger.problems import ledger_problem
from worker.ledger.vault import CredentialsError

app = typer.Typer(
    help="Stops an order before the warehouse ships it.\n\nExample: cancel-worker enqueue 1001 --wait",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.callback()(service.cancel_worker)
connections.app.command()(one_connection.show)
connections.app.command()(one_connection.mend_link)
connections.app.command()(rekey.rekey)
app.add_typer(connections.app, name="connections")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(batches.app, name="batches")
app.add_typer(audit.app, name="audit")
app.add_typer(events.app, name="events")
endpoints.app.command(name="test")(endpoint_sends.send_test)
endpoints.app.command()(endpoint_sends.replay)
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(producers.app, name="producers")
for command in (
    local.demo,
    service.run,
    schema.migrate,
    local.sandbox,
    doctor.doctor,
    service.health,
    orders.enqueue,
    enqueue_file.enqueue_file,
    orders.show,
    orders.list_,
    repair.replay,
    repair.withdraw,
    changes.change,
    forget.prune,
    forget.redact,
    repair.resolve,
    windows.windows,
):
    app.command(name=command.__name__.rstrip("_").replace("_", "-"))(command)

WITHOUT_INSTANTS = {local.demo, local.sandbox, service.run, schema.migrate, service.health}
for group in (
    app,
    connections.app,
    dead_letters.app,
    batches.app,
    audit.app,
    events.app,
    endpoints.app,
    producers.app,
):
    for each in group.registered_commands:
        if each.callback and each.callback not in WITHOUT_INSTANTS:
            each.callback = with_utc(each.callback)

WRONG_INPUT = (
    CursorError,
    InvalidRequest,
    KeyConflictError,
    UnknownCancellationError,
    UnknownDeadLetterError,
    SettingsError,
    CredentialsError,
)
UNREACHABLE = (InboxUnavailableError, LedgerUnavailableError, TrackstarAwayError)


def main() -> None:
    """Run the command line and turn every error into a sentence and an exit code."""
    try:
        app()
    except (AlreadyEndedError, TooLateError, NotResolvableError, NoLinkError, TimeoutError) as error:
        _fail(1, str(error))
    except WRONG_INPUT as error:
        _fail(2, str(error))
    except UNREACHABLE as error:
        _fail(3, str(error))
    except RedisError as error:
        away = f"Redis could not be reached ({type(error).__name__}): check REDIS_URL and that the server runs"
        _fail(3, f"{remedy_of(error) or away}.")
    except SchemaError as error:
        _fail(2, str(error))
    except SQLAlchemyError as error:
        _fail(3, ledger_problem(error))
    except ValueError as error:
        _fail(2, str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last stop before a person
        sentry_sdk.capture_exception(error)
        _fail(1, f"This is a bug in cancel-worker ({type(error).__name__}): please report what you typed.")


def _fail(code: int, sentence: str) -> NoReturn:
    SafeConsole(stderr=True, soft_wrap=True).print(scrubbed(sentence), style="red")
    sys.exit(code)
