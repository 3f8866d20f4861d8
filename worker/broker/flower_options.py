"""What Flower must be told before it starts: its settings, a password, that it only looks, and how to reach Redis.

Flower has no hook for that. So its command is asked first, and asked again when it has read its options and loads the
app's modules. Knows Flower and tornado's options, where this program is Flower; does nothing in any other.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery import signals

from worker.environment import SettingsError, from_environment
from worker.inputs.values import problem_of_number
from worker.settings import known_secrets
from worker.telemetry.logs import MIN_SECRET_LENGTH, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

PREFIX = "FLOWER_"
PASSWORD = "FLOWER_BASIC_AUTH"  # noqa: S105 - the name of a setting
READ_ONLY = "FLOWER_READ_ONLY"
# What a person looks for first, then the id, which leads to the task's own page. The name is always the same.
COLUMNS = "state,args,result,received,uuid,runtime,worker"
LABELS = {"args": "Connection, order", "result": "Verdict or reason"}
TRUTHS = frozenset(["y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0"])


def prepare_flower(app: Celery) -> None:
    """Let Celery's command `flower`, where this program has it, be asked before it starts with this app."""
    module: Any = sys.modules.get("flower.command")
    if module is not None:
        module.flower.callback = _asked_first(module.flower.callback, app)
        module.sigterm_handler = end_in_the_loop


def end_in_the_loop(*_: Any) -> None:
    """End Flower from its event loop, as the handler of SIGTERM.

    Flower's own handler raises SystemExit wherever the main thread is; between taking a lock of `logging` and its
    `try`, the lock is never given back, and the threads that are waited for at the end wait for it (seen).
    """
    from tornado.ioloop import IOLoop  # noqa: PLC0415

    loop: Any = IOLoop.current()
    loop.asyncio_loop.call_soon_threadsafe(sys.exit)


def _asked_first(command: Callable[..., Any], app: Celery) -> Callable[..., Any]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            read_settings()
        except SettingsError as error:
            raise SystemExit(f"Flower does not start: {error}") from error
        signals.import_modules.connect(check_flower, sender=app)
        show_verdicts()
        show_queues_of(app)
        return command(*args, **kwargs)

    return run


def read_settings() -> None:
    """Put each setting of Flower's into the environment as Flower reads it, also one that stands in a file.

    Raises SettingsError for one that Flower would answer with a traceback.
    """
    from tornado.options import options  # noqa: PLC0415 - of Flower, which is an extra

    known = options._options.items()  # noqa: SLF001 - as Flower itself does
    kinds: dict[str, Any] = {f"{PREFIX}{name.replace('-', '_').upper()}": option.type for name, option in known}
    for name in [name for name in kinds if name in os.environ or f"{name}_FILE" in os.environ]:
        value = from_environment(name)
        os.environ.pop(name, None)
        if value is None:
            continue
        if kinds[name] in {int, float}:
            for part in value.split(","):
                if problem := problem_of_number(part):
                    raise SettingsError(f"{name} {problem}.")
        if kinds[name] is bool and value.lower() not in TRUTHS:
            raise SettingsError(f"{name} must be true or false.")
        os.environ[name] = value


def show_verdicts() -> None:
    """Let the list of tasks say which order of which connection each is, and what came of it."""
    from flower.views.tasks import TASK_COLUMNS  # noqa: PLC0415
    from tornado.options import options  # noqa: PLC0415

    options.tasks_columns = COLUMNS  # Flower reads what a person has chosen after this
    TASK_COLUMNS.update(LABELS)


def show_queues_of(app: Celery) -> None:
    """Let Flower's page of queues ask Redis as every other part does: by itself it knows few forms of an address."""
    from flower.utils.broker import RedisBase  # noqa: PLC0415
    from flower.views import BaseHandler  # noqa: PLC0415
    from redis import asyncio  # noqa: PLC0415

    from worker.broker.flower_sentinel import async_class  # noqa: PLC0415

    scheme = app.conf.broker_url.partition("://")[0]
    kinds = {"rediss": asyncio.SSLConnection, "redis+socket": asyncio.UnixDomainSocketConnection}
    options = app.conf.broker_transport_options["redis_options"]
    kind = async_class(options["primary"]) if "primary" in options else kinds.get(scheme, asyncio.Connection)

    def get_broker(_: Any) -> Any:
        broker = RedisBase("redis://")
        pool = asyncio.ConnectionPool(connection_class=kind, **options)
        broker.redis = asyncio.Redis.from_pool(pool)
        return broker

    BaseHandler.get_broker = get_broker


def check_flower(**_: Any) -> None:
    """Refuse to start Flower without a password. Raises SystemExit with what to set."""
    from tornado.options import options  # noqa: PLC0415

    if not options.basic_auth and (password := from_environment(PASSWORD)):
        options.basic_auth = password.split(",")
    if any(not all(entry.partition(":")[::2]) for entry in options.basic_auth):
        raise SystemExit(f"Flower does not start: {PASSWORD} must be user:password, or several separated by commas.")
    if not (options.basic_auth or _signs_in_elsewhere(options)):
        raise SystemExit(
            f"Flower does not start without a password: set {PASSWORD} to user:password (or all of FLOWER_AUTH, "
            "FLOWER_AUTH_PROVIDER, FLOWER_OAUTH2_KEY, FLOWER_OAUTH2_SECRET and FLOWER_OAUTH2_REDIRECT_URI)."
        )
    # Whoever knows Flower's password should not be able to run tasks; "false" allows that.
    if READ_ONLY not in os.environ and not any(word.startswith(("--read_only", "--read-only")) for word in sys.argv):
        options.read_only = True
    _keep_secrets_out_of_logs([*known_secrets(), *_passwords(options)])


def _signs_in_elsewhere(options: Any) -> bool:
    """Whether people are sent to a provider: without one of these, nobody is asked, or nobody can come in."""
    names = ("auth", "auth_provider", "oauth2_key", "oauth2_secret", "oauth2_redirect_uri")
    return all(options[name] for name in names)


def _passwords(options: Any) -> list[str]:
    basic = [entry.partition(":")[2] for entry in options.basic_auth]
    return [*basic, *(options[name] for name in ("oauth2_secret", "cookie_secret") if options[name])]


class _WithoutSecrets(logging.Filter):
    def __init__(self, secrets: list[str]) -> None:
        super().__init__()
        self._secrets = [value for value in secrets if len(value) >= MIN_SECRET_LENGTH]

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self._secrets), ()
        if record.exc_info:
            record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info), self._secrets)
        return True


def _keep_secrets_out_of_logs(secrets: list[str]) -> None:
    for handler in logging.getLogger().handlers:
        handler.filters[:] = [each for each in handler.filters if not isinstance(each, _WithoutSecrets)]
        handler.addFilter(_WithoutSecrets(secrets))
