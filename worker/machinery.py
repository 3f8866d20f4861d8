"""One worker process, assembled: which parts there are, how they are joined, in which order they start and end.

Knows every part by its door; holds no rule of its own.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt import LedgerClock, Tools, attempt, batches_of_reads, read_back, rescue
from worker.dispatcher import Dispatcher, Doors
from worker.environment import SettingsError
from worker.flower import FlowerReporter
from worker.health import HealthServer, Vitals
from worker.inbox import connect_redis
from worker.intake import Intake
from worker.ledger import claims
from worker.ledger.connections import ensure_default
from worker.ledger.credentials import TokenVault
from worker.ledger.engine import open_ledger
from worker.observability import report_bug
from worker.pause import Pause
from worker.publisher import Publisher
from worker.recorder import Recorder
from worker.report import tell
from worker.slots import Slots
from worker.trackstar.client import TrackstarClient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery

    from worker.cancellation.lifecycle import Move
    from worker.ledger.claims import Claim
    from worker.ledger.recording import Record, Recorded
    from worker.ledger.turns import Overdue
    from worker.settings import Settings

log = structlog.get_logger()

# The threads that hold a database connection: intake, dispatcher, recorder, publisher and the claiming ones.
CLAIMING_THREADS = 4
LEDGER_CONNECTIONS = CLAIMING_THREADS + 4
# What an ending worker gives a ledger that is away, for answers that are in hand.
LEAST_GRACE_SECONDS = 10.0


class Machinery:
    """All parts of one worker process."""

    def __init__(
        self, settings: Settings, app: Celery, hostname: str, publish: Callable[[Sequence[str]], None]
    ) -> None:
        self._settings = settings
        self._ledger = open_ledger(settings.database_url, pool_size=LEDGER_CONNECTIONS)
        self._redis = connect_redis(settings.redis_url)
        self._vault = TokenVault(settings.keys)
        self.owner = f"{hostname}:{uuid.uuid4().hex[:8]}"
        self._tools = Tools(
            trackstar=TrackstarClient(
                settings.trackstar_base_url,
                settings.trackstar_api_key.get_secret_value(),
                connect_timeout=settings.connect_timeout_seconds,
                request_timeout=settings.request_timeout_seconds,
                max_response_bytes=settings.max_response_bytes,
                threads=settings.concurrency,
            ),
            unseal=self._vault.open,
            policy=settings.policy,
            start_within=settings.lease_margin_seconds / 2,
        )
        self._slots = Slots(settings.concurrency)
        self._requests = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="request")
        self._stopping = threading.Event()
        self._vitals = Vitals(busy=lambda: self._slots.all_taken)
        self._flower = FlowerReporter(app, hostname)
        self._recorder = Recorder(self._ledger, self._on_recorded)
        self._publisher = Publisher(self._redis, self._ledger)
        self._dispatcher = Dispatcher(
            self._ledger,
            self.owner,
            settings.concurrency,
            settings.lease_seconds,
            settings.policy,
            Doors(
                prepare=self._keep_default_connection,
                publish=publish,
                rescue=self._rescue,
                read_back=self._read_back,
                publish_events=self._publisher.wake,
                expired=self._on_expired,
            ),
            self._vitals,
        )
        self._intake = Intake(self._redis, self._ledger, self.owner, self._dispatcher.wake, self._vitals)
        self._parts = (self._flower, self._recorder, self._publisher, self._dispatcher, self._intake)
        self._health = self._health_server(settings.health_port)

    def _health_server(self, port: int | None) -> HealthServer | None:
        if port is None:
            return None
        try:
            return HealthServer(port, [part.thread for part in self._parts], self._vitals)
        except OSError as error:
            raise SettingsError(
                f"HEALTH_PORT is {port}, which cannot be used ({error.strerror}): choose another."
            ) from error

    def start(self) -> None:
        """Start every part; each waits by itself for a Redis or a ledger that is not there yet."""
        for part in self._parts:
            part.start()
        if self._health is not None:
            self._health.start()
        log.info("worker.started", owner=self.owner, host=socket.gethostname(), concurrency=self._settings.concurrency)

    def stop(self) -> None:
        """Take nothing new, finish what is in flight, record it, hand back what is queued."""
        self._stopping.set()
        self._intake.stop()
        self._dispatcher.stop()
        self._slots.close()  # waits for what is in flight
        self._requests.shutdown(wait=True)
        if not self._recorder.stop(grace=max(self._settings.lease_margin_seconds, LEAST_GRACE_SECONDS)):
            log.warning("worker.answers_not_recorded")  # their claims end by themselves; the rescue goes on
        self._publisher.stop()
        self._flower.stop()
        self._ledger.dispose()
        if self._health is not None:
            self._health.stop()
        log.info("worker.stopped", owner=self.owner)

    def _keep_default_connection(self) -> None:
        if token := self._settings.trackstar_access_token.get_secret_value():
            sealed = self._vault.seal(token)
            with self._ledger.begin() as connection:
                ensure_default(connection, sealed, self._vault.open, token)

    def attempt_all(self, ids: Sequence[str]) -> None:
        """Claim these and hand each to a request thread; returns as soon as all are handed over.

        Waits for free threads, and for the ledger where it is away: then nothing of the message is settled.
        """
        rest = list(ids)
        while rest and (taken := self._slots.take(len(rest))):
            batch, rest = rest[:taken], rest[taken:]
            claimed, asked = self._claim(batch)
            self._vitals.took()
            self._slots.give_back(taken - len(claimed))
            self._dispatcher.wake()
            self._flower.claimed(claimed)
            for claim in claimed:
                self._requests.submit(self._attempt, claim, LedgerClock(claim.claimed_at, asked))

    def _claim(self, ids: Sequence[str]) -> tuple[list[Claim], float]:
        """Return what was claimed, and a monotonic time before its lease began: a pause since then counts."""
        pause = Pause(self._stopping)
        while not self._stopping.is_set():
            asked = time.monotonic()
            try:
                with self._ledger.begin() as connection:
                    return claims.claim(connection, ids, self.owner, self._settings.lease_seconds), asked
            except SQLAlchemyError as error:
                pause.wait("claim.ledger_away", error, ids=len(ids))
        return [], 0.0

    def _attempt(self, claim: Claim, clock: LedgerClock) -> None:
        try:
            record = attempt(claim, clock, self._tools)
            if record is not None:
                self._recorder.put(record)
        except Exception:  # noqa: BLE001
            # A bug: the claim's lease ends, and the rescue takes it from there as in doubt.
            report_bug("cancellation.attempt_failed", id=claim.fence.id)
        finally:
            self._slots.give_back(1)

    def _rescue(self, lost: list[Claim]) -> None:
        for claim in lost:
            log.warning("cancellation.rescued", id=claim.fence.id, connection_id=claim.connection_id)
            self._recorder.put(rescue(claim, self._tools.policy))

    def _read_back(self, due: list[Claim]) -> None:
        clock = LedgerClock(due[0].claimed_at, time.monotonic())
        for batch in batches_of_reads(due):
            self._requests.submit(self._read_batch, batch, clock)

    def _read_batch(self, batch: list[Claim], clock: LedgerClock) -> None:
        try:
            for record in read_back(batch, clock, self._tools):
                self._recorder.put(record)
        except Exception:  # noqa: BLE001 - a bug: its next time stands in the ledger already
            report_bug("cancellation.read_back_failed", ids=[claim.fence.id for claim in batch])

    def _on_recorded(self, records: list[Record], recorded: Recorded) -> None:
        tell(records, recorded)
        for record in records:
            if record.move is not None and record.claim.fence.id in recorded.applied:
                runtime = sum(row.duration_ms or 0 for row in record.attempts) / 1000
                self._flower.moved(record.claim.fence.id, record.move, runtime=runtime)
        self._publisher.wake()
        self._dispatcher.wake()  # a retry may be due before the next poll, and there is room again

    def _on_expired(self, ended: list[tuple[Overdue, Move]]) -> None:
        for row, move in ended:
            log.info(
                "cancellation.expired",
                id=row.id,
                connection_id=row.connection_id,
                order_id=row.order_id,
                verdict=move.verdict,
            )
            self._flower.moved(row.id, move)
        self._publisher.wake()
