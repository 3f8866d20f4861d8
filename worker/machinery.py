"""One worker process, assembled: which parts there are, how they are joined, in which order they start and end.

Knows every part by its door; holds no rule of its own.
"""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt import LedgerClock, Tools, attempt, batches_of_reads, look_up, read_back, rescue
from worker.berths import Berths
from worker.breaker import Breaker
from worker.dispatcher import Dispatcher
from worker.environment import SettingsError
from worker.flower import FlowerReporter
from worker.health import HealthServer, Vitals
from worker.housekeeper import Doors, Housekeeper
from worker.inbox import connect_redis
from worker.intake import Intake
from worker.ledger import claims, holds
from worker.ledger.connections import ensure_default
from worker.ledger.credentials import TokenVault
from worker.ledger.engine import one_statement, open_ledger
from worker.observability import report_bug
from worker.pause import Pause
from worker.publisher import Publisher
from worker.recorder import Recorder
from worker.report import tell, tell_expired, tell_holds
from worker.trackstar.client import TrackstarClient
from worker.trackstar.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery
    from sqlalchemy import Engine

    from worker.cancellation.lifecycle import Move
    from worker.ledger.agenda import Overdue
    from worker.ledger.claims import Claim
    from worker.ledger.moving import Fence
    from worker.ledger.recording import Record, Recorded
    from worker.settings import Settings
    from worker.trackstar.pacing import Permit

log = structlog.get_logger()

CLAIMING_THREADS = 4
# What an ending worker gives a ledger that is away, for answers that are in hand.
LEAST_GRACE_SECONDS = 10.0


class Machinery:
    """All parts of one worker process."""

    def __init__(
        self, settings: Settings, app: Celery, hostname: str, owner: str, publish: Callable[[Sequence[str]], None]
    ) -> None:
        self._settings = settings
        self._ledgers: list[Engine] = []
        self._ledger = self._open_ledger(CLAIMING_THREADS)
        self._redis = connect_redis(settings.redis_url)
        self._vault = TokenVault(settings.keys)
        self.owner = owner
        pace = Pace(self._redis, settings.writes_per_second, settings.reads_per_second)
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
            pace=pace,
            start_within=settings.lease_margin_seconds / 2,
        )
        self._berths = Berths(settings.concurrency)
        self._requests = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="request")
        self._stopping = threading.Event()
        self._vitals = Vitals()
        self._breaker = Breaker(self._redis)
        self._flower = FlowerReporter(app, hostname)
        self._in_hand: set[Fence] = set()  # claims that have no record yet
        self._recorder = Recorder(self._open_ledger(), self._on_recorded, self._on_refused)
        self._publisher = Publisher(self._redis, self._open_ledger())
        self._dispatcher = Dispatcher(
            self._open_ledger(),
            owner,
            pace.writes,
            settings.writes_per_second,
            self._berths,
            publish,
            self._vitals,
            prepare=self._keep_default_connection,
        )
        self._housekeeper = Housekeeper(
            self._open_ledger(),
            owner,
            settings.lease_seconds,
            settings.writes_per_second,
            settings.policy,
            Doors(
                pending=self._dispatcher.arrived,
                rescue=self._rescue,
                read_back=self._read_back,
                publish_events=self._publisher.wake,
                expired=self._on_expired,
            ),
        )
        self._intake = Intake(self._redis, self._open_ledger(), owner, self._dispatcher.arrived, self._vitals)
        self._parts = (
            self._flower,
            self._recorder,
            self._publisher,
            self._housekeeper,
            self._dispatcher,
            self._intake,
        )
        self._health = self._health_server(settings.health_port)

    def _open_ledger(self, connections: int = 1) -> Engine:
        # Each part keeps to a connection of its own, whose server process has its few statements at hand.
        ledger = open_ledger(self._settings.database_url, pool_size=connections, plan_once=True)
        self._ledgers.append(ledger)
        return ledger

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

    def take_nothing_new(self) -> None:
        """Begin to end: from now on nothing is taken, whatever Celery still does. Safe in a signal handler."""
        self._stopping.set()
        self._intake.halt()
        self._dispatcher.halt()

    def stop(self) -> None:
        """Take nothing new, finish what is in flight, record it, hand back what is queued."""
        self.take_nothing_new()
        self._intake.stop()
        self._dispatcher.stop()
        self._housekeeper.stop()
        self._berths.wait_until_empty()
        self._requests.shutdown(wait=True)
        if not self._recorder.stop(grace=max(self._settings.lease_margin_seconds, LEAST_GRACE_SECONDS)):
            log.warning("worker.answers_not_recorded")  # their claims end by themselves; the rescue goes on
        self._publisher.stop()
        self._flower.stop()
        for ledger in self._ledgers:
            ledger.dispose()
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

        Waits for the ledger where it is away: then nothing of the message is settled.
        """
        self._vitals.took()
        claimed, asked = self._claim(ids)
        permits = {claim.fence.id: self._berths.board(claim.fence.id, claim.connection_id) for claim in claimed}
        self._berths.forget(ids)
        self._in_hand.update(claim.fence for claim in claimed)
        self._flower.claimed(claimed)
        unread = [claim for claim in claimed if claim.state.awaits_read]
        for batch in batches_of_reads(unread):
            self._requests.submit(self._attempt, batch, LedgerClock(batch[0].claimed_at, asked), None)
        for claim in claimed:
            if not claim.state.awaits_read:
                clock = LedgerClock(claim.claimed_at, asked)
                self._requests.submit(self._attempt, [claim], clock, permits[claim.fence.id])

    def _claim(self, ids: Sequence[str]) -> tuple[list[Claim], float]:
        """Return what was claimed, and a monotonic time before its lease began: a pause since then counts."""
        pause = Pause(self._stopping)
        while not self._stopping.is_set():
            try:
                with one_statement(self._ledger) as connection:
                    asked = time.monotonic()  # after SQLite's wait for its lock, which is no part of the lease
                    return claims.claim(connection, ids, self.owner, self._settings.lease_seconds), asked
            except SQLAlchemyError as error:
                pause.wait("claim.ledger_away", error, ids=len(ids))
        return [], 0.0

    def _attempt(self, batch: list[Claim], clock: LedgerClock, permit: Permit | None) -> None:
        try:
            self._tools.pace.wait_to_write(batch[0].connection_id, permit)
            if batch[0].state.awaits_read:
                records = look_up(batch, clock, self._tools)
            else:
                records = [attempt(batch[0], clock, self._tools)]
            for each in records:
                self._recorder.put(each)
        except Exception:  # noqa: BLE001
            # A bug: the claim's lease ends, and the rescue takes it from there as in doubt.
            self._in_hand.difference_update(claim.fence for claim in batch)
            report_bug("cancellation.attempt_failed", ids=[claim.fence.id for claim in batch])
        finally:
            for claim in batch:
                self._berths.leave(claim.connection_id)

    def _rescue(self, lost: list[Claim]) -> None:
        for claim in lost:
            if claim.fence in self._in_hand:
                continue  # ours all the while, as after a pause or while the ledger was away: its answer comes
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

    def _on_refused(self, record: Record) -> None:
        self._in_hand.discard(record.claim.fence)

    def _on_recorded(self, records: list[Record], recorded: Recorded) -> None:
        self._in_hand.difference_update(record.claim.fence for record in records)
        tell(records, recorded)
        for record in records:
            if record.move is not None and record.claim.fence.id in recorded.applied:
                runtime = sum(row.duration_ms or 0 for row in record.attempts) / 1000
                self._flower.moved(record.claim.fence.id, record.move, runtime=runtime)
        self._publisher.put(recorded.events)
        if recorded.held or recorded.resumed or recorded.trackstar_resumed or any(r.confirmation for r in records):
            self._publisher.wake()
        if any(record.move and record.move.run_at for record in records):
            self._housekeeper.wake()  # a retry may be due before the next poll
        self._judge(records, recorded)

    def _judge(self, records: list[Record], recorded: Recorded) -> None:
        """Hold what has turned out to be down, and send what goes on."""
        if recorded.trackstar_resumed:
            self._breaker.forget()
        elif recorded.resumed:
            self._breaker.forget(sorted(recorded.resumed))
            self._dispatcher.arrived(recorded.resumed)
        judgement = self._breaker.note(records)
        if not judgement.connections and not judgement.all_of_them:
            return
        with self._ledger.begin() as connection:
            if judgement.all_of_them:
                tell_holds(holds.hold_all(connection))
            else:
                tell_holds(holds.hold(connection, judgement.connections, holds.OUTAGE))
        self._publisher.wake()

    def _on_expired(self, ended: list[tuple[Overdue, Move]]) -> None:
        tell_expired(ended)
        for row, move in ended:
            self._flower.moved(row.id, move)
        self._publisher.wake()
