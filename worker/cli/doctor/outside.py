"""What `doctor` says of Flower and Sentry: whether they answer. No cancel needs either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests
import sentry_sdk
from sentry_sdk.transport import HttpTransport

from worker.cli.doctor.asking import PATIENCE_SECONDS
from worker.cli.doctor.finding import Finding
from worker.environment import from_environment
from worker.telemetry.sentry import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings import Settings

FLOWERS_OWN_PORT = "5555"


def look_at_flower(_: Settings) -> Iterator[Finding]:
    """Say whether Flower answers at FLOWER_URL, or at its port of this machine."""
    port = from_environment("FLOWER_PORT")
    stated = from_environment("FLOWER_URL") or (f"http://127.0.0.1:{port}" if port else None)
    url = stated or f"http://127.0.0.1:{FLOWERS_OWN_PORT}"
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{url.rstrip('/')}/healthcheck", timeout=PATIENCE_SECONDS, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        if stated is None:
            yield Finding("Flower", f"does not run here (port {FLOWERS_OWN_PORT}); FLOWER_URL says where it does")
        else:
            remedy = "Start it (`celery -A worker flower`), or correct FLOWER_URL or FLOWER_PORT."
            yield Finding("Flower", f"does not answer ({type(error).__name__})", remedy, passing=True)
        return
    # Behind a prefix, or a proxy that asks for a password, another answer is as good: somebody is there.
    yield Finding("Flower", f"answers ({answer.status_code})")


def look_at_sentry(settings: Settings) -> Iterator[Finding]:
    """Say whether a DSN is set."""
    dsn = settings.sentry_dsn.get_secret_value()
    if dsn:
        yield Finding("Sentry", "SENTRY_DSN is set; `doctor --send-test` sends an event")
    else:
        yield Finding("Sentry", "SENTRY_DSN is not set: nobody is called")


def send_test(settings: Settings) -> Iterator[Finding]:
    """Send an event to Sentry by its library's own transport, and say whether it was taken."""
    dsn = settings.sentry_dsn.get_secret_value()
    if not dsn:
        yield Finding("Sentry", "no test event was sent", "Set SENTRY_DSN.")
        return
    lost: list[str] = []

    class Watched(HttpTransport):
        def on_dropped_event(self, reason: str) -> None:
            lost.append(reason)

    def not_in_time(_pending: int, _timeout: float) -> None:
        lost.append("no answer in time")

    client = sentry_sdk.Client(dsn=dsn, transport=Watched, release=RELEASE, default_integrations=False)
    message = {"message": "cancel-worker doctor: a test event", "level": "info", "fingerprint": ["doctor.test"]}
    event_id = client.capture_event(message)  # type: ignore[arg-type]
    client.close(timeout=PATIENCE_SECONDS, callback=not_in_time)
    if lost or event_id is None:
        said = f"the test event was not taken ({lost[0] if lost else 'not sent'})"
        yield Finding("Sentry", said, "Correct SENTRY_DSN, or let this machine reach its host.")
    else:
        yield Finding("Sentry", f"the test event {event_id} was taken")
