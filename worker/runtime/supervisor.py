"""One worker process: builds its parts, starts them and ends them in order. Holds no rule and does no work.

client → INBOX → intake ──► ledger ──► dispatcher ──► Celery ──► executor ──► attempt ──► recorder ──► ledger
                              ▲                                                               │
                              └── maintenance, outages                      relay, reporter ◄─┘
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from worker.environment import SettingsError
from worker.ledger import binding, migrations
from worker.ledger.connections import DEFAULT, ensure_default
from worker.ledger.database import open_ledger
from worker.ledger.holds import OUTAGE, TRACKSTAR_OUTAGE
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.ledger.vault import TokenVault, of_connection
from worker.runtime.attempt import AttemptContext
from worker.runtime.backlog import Backlog
from worker.runtime.celery_inbox import CeleryInbox
from worker.runtime.counting import count_expired, count_held, count_recorded
from worker.runtime.dispatcher import Dispatcher
from worker.runtime.executor import Executor
from worker.runtime.freshness import Freshness
from worker.runtime.gauges import LedgerGauges
from worker.runtime.hints import Hints
from worker.runtime.inboxes import Inboxes
from worker.runtime.intake import Intake
from worker.runtime.known_crawls import KnownCrawls
from worker.runtime.maintenance import Handlers, Maintenance
from worker.runtime.outages import Outages
from worker.runtime.recorder import Recorder
from worker.runtime.relay import Relay
from worker.runtime.reporting import Reporter, alert_on_holds, log_expired
from worker.runtime.second_look import SecondLook
from worker.runtime.webhooks import Webhooks
from worker.streams import connect_redis
from worker.telemetry.health import Vitals
from worker.telemetry.health_server import HealthServer, dead_threads
from worker.telemetry.metrics import Metrics
from worker.trackstar.client import TrackstarClient
from worker.trackstar.pacing import Pace
from worker.version import __version__
from worker.webhooks.sender import Network, trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.lifecycle import Transition
    from worker.ledger.deadlines import Lapsed
    from worker.ledger.results import CommitSummary, Result
    from worker.runtime.executor import Subscriber
    from worker.runtime.loop import Loop
    from worker.settings import Settings
    from worker.telemetry.metrics import Samples

    class LoopingSubscriber(Subscriber, Protocol):
        """One with a thread of its own."""

        loop: Loop


log = structlog.get_logger()

# Seconds that an ending worker waits for the ledger to take the results in hand, and for each other thread to end.
MIN_GRACE_SECONDS = 10.0
LAST_WORD_SECONDS = 3.0


class Supervisor:
    """All parts of one worker process."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        publish: Callable[[Sequence[str]], None],
        subscriber: LoopingSubscriber,
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._subscriber = subscriber
        self._ledgers: list[Engine] = []
        self._vault = TokenVault(settings.keys)
        redis = connect_redis(settings.redis_url)
        self._metrics = Metrics()
        pace = Pace(redis, settings.writes_per_second, settings.reads_per_second, self._metrics.slots_used)
        took = self._metrics.record_batch.observe
        self._recorder = Recorder(self._open_ledger(), self._on_committed, self._on_refused, took)
        self._crawls = KnownCrawls()
        context = self._context(pace)
        self.executor = Executor(settings.concurrency, context, self._recorder.put, subscriber)
        vitals = Vitals(self.executor.unconsumed_seconds)
        self._relay = Relay(redis, self._open_ledger(), vitals, settings.event_signer)
        self._reporter = Reporter()
        self._outages = Outages(redis, self._open_ledger(), self._on_held)
        self._dispatcher = self._make_dispatcher(pace, publish, vitals)
        self._maintenance = self._make_maintenance()
        self._intake = self._make_intake(redis, vitals)
        self._celery_inbox = CeleryInbox(redis, vitals)
        self._receiving = [self._intake.loop, self._celery_inbox.loop, self._dispatcher.loop]
        self._freshness = self._make_freshness(redis, context)
        self._hints = Hints(redis, self._open_ledger(), self._maintenance.loop.wake)
        self._webhooks = self._make_webhooks()
        self._telling = [self._outages.loop, self._reporter.loop, self._relay.loop, subscriber.loop]
        self._loops = [*self._telling, self._recorder.loop, self._maintenance.loop, *self._receiving]
        watched = self._open_ledger()  # for both who only look, a moment every few seconds
        self._backlog = self._make_backlog(redis, pace, vitals, watched)
        self._loops += [self._backlog.loop, self._freshness.loop, self._hints.loop]
        # Readiness is about cancels: Flower, proof, gauges and webhooks make no worker unready.
        vitals.watch(loop for loop in self._loops if loop not in self._not_for_readiness(subscriber))
        self._gauges = self._make_gauges(redis, vitals, watched)
        self._loops += [self._gauges.loop, self._webhooks.loop]
        self._health = _health_server(settings, self._loops, vitals, self._metrics)

    def _not_for_readiness(self, subscriber: LoopingSubscriber) -> tuple[Loop, ...]:
        return subscriber.loop, self._freshness.loop, self._hints.loop

    def _context(self, pace: Pace) -> AttemptContext:
        settings = self._settings
        trackstar = TrackstarClient(
            settings.trackstar_base_url,
            settings.trackstar_api_key.get_secret_value(),
            connect_timeout=settings.connect_timeout_seconds,
            request_timeout=settings.request_timeout_seconds,
            max_response_bytes=settings.max_response_bytes,
            threads=settings.concurrency,
            retry_cap=settings.retry_cap_seconds,
            ca_bundle=settings.ca_bundle,
            proxy=settings.trackstar_proxy.get_secret_value(),
            observe=partial(self._metrics.request, urlsplit(settings.trackstar_base_url).hostname or ""),
        )
        return AttemptContext(
            trackstar=trackstar,
            decrypt=self._vault.decrypt,
            policy=settings.policy,
            pace=pace,
            start_within=settings.start_within_seconds,
            lease_seconds=settings.lease_seconds,
            crawls=self._crawls.of,
        )

    def _make_intake(self, redis: Redis, vitals: Vitals) -> Intake:
        ledger = self._open_ledger()
        self._inboxes = Inboxes(redis, ledger)
        arrived = self._dispatcher.arrived
        return Intake(redis, ledger, self._owner, arrived, vitals, self._metrics, self._inboxes)

    def _make_freshness(self, redis: Redis, context: AttemptContext) -> Freshness:
        ledger = self._open_ledger()
        return Freshness(
            redis,
            ledger,
            context,
            self._crawls,
            SecondLook(ledger, context, self._recorder.put),
            rate=self._settings.writes_per_second,
            force=self._settings.force_sync,
            on_changed=self._on_crawled,
        )

    def _make_dispatcher(self, pace: Pace, publish: Callable[[Sequence[str]], None], vitals: Vitals) -> Dispatcher:
        return Dispatcher(
            self._open_ledger(),
            self._owner,
            self._settings.lease_seconds,
            self._settings.start_within_seconds,
            pace.writes,
            self._settings.writes_per_second,
            self.executor,
            publish,
            vitals,
            self._metrics,
        )

    def _make_backlog(self, redis: Redis, pace: Pace, vitals: Vitals, ledger: Engine) -> Backlog:
        return Backlog(
            redis,
            ledger,
            self._owner,
            pace.writes,
            self._settings.writes_per_second,
            self.executor,
            self._settings.lease_seconds,
            vitals,
            inboxes=lambda: self._inboxes.streams,
        )

    def _make_maintenance(self) -> Maintenance:
        return Maintenance(
            self._open_ledger(),
            self._owner,
            self._settings.lease_seconds,
            self._settings.writes_per_second,
            self._settings.policy,
            Handlers(
                at_start=self._keep_default_connection,
                on_ready=self._dispatcher.arrived,
                rescue=self.executor.rescue,
                confirm=self.executor.confirm,
                publish_events=self._look_for_events,
                expired=self._on_expired,
                crawls=self._crawls.of,
                warned=self._metrics.wont_make_it.inc,
            ),
            self._settings.retention,
        )

    def _make_webhooks(self) -> Webhooks:
        settings = self._settings
        return Webhooks(
            self._open_ledger(),
            self._owner,
            self._vault.decrypt,
            Network(
                allow_private=settings.webhook_allow_private,
                tls=trust(settings.ca_bundle),
                proxy=settings.webhook_proxy.get_secret_value(),
            ),
            self._metrics,
            concurrency=settings.webhook_concurrency,
            announced=self._relay.wake,
        )

    def _make_gauges(self, redis: Redis, vitals: Vitals, ledger: Engine) -> LedgerGauges:
        build: Samples = {(__version__, self._settings.revision, migrations.head() or ""): 1.0}
        self._metrics.watch(lambda: {**self._now(vitals), "cancel_worker_build_info": build})
        return LedgerGauges(
            redis,
            ledger,
            self._metrics,
            writes_per_second=self._settings.writes_per_second,
            reads_per_second=self._settings.reads_per_second,
            names=self._settings.metrics_connections,
            inboxes=lambda: self._inboxes.streams,
        )

    def _now(self, vitals: Vitals) -> dict[str, Samples]:
        used = self.executor.in_use().total()
        return {
            "cancel_worker_ready": {(): float(not dead_threads(self._loops) and not vitals.problems())},
            "cancel_worker_slots": {("used",): float(used), ("free",): float(max(0, self.executor.threads - used))},
        }

    def _open_ledger(self) -> Engine:
        # Each part keeps to a connection of its own: PostgreSQL keeps that part's few prepared statements there.
        ledger = open_ledger(self._settings.database_url, pool_size=1, plan_once=True)
        self._ledgers.append(ledger)
        return ledger

    def start(self) -> None:
        """Start every part; each waits by itself for a Redis or a ledger that is not there yet.

        The request threads come last: where the system allows too few threads, they are fewer.
        """
        for loop in self._loops:
            loop.start()
        if self._health is not None:
            self._health.start()
        self.executor.start()
        log.info("worker.started", owner=self._owner, host=socket.gethostname(), concurrency=self.executor.threads)

    def take_nothing_new(self) -> None:
        """Begin to end: from now on nothing is taken, whatever Celery still does. Safe in a signal handler."""
        for loop in self._receiving:
            loop.halt()

    def stop(self) -> None:
        """Take nothing new, give back what was not consumed, finish what is running, and record it."""
        self.take_nothing_new()
        self._intake.stop()
        self._celery_inbox.stop()
        self._dispatcher.stop()
        self._maintenance.loop.stop(10)
        for loop in (self._backlog.loop, self._freshness.loop, self._hints.loop, self._gauges.loop):
            loop.stop(LAST_WORD_SECONDS)
        self.executor.drain()
        if not self._recorder.stop(max(self._settings.lease_margin_seconds, MIN_GRACE_SECONDS)):
            log.warning("worker.answers_not_recorded")  # their claims end by themselves; the rescue goes on
        for loop in (*self._telling, self._webhooks.loop):
            loop.stop(LAST_WORD_SECONDS)
        for ledger in self._ledgers:
            ledger.dispose()
        if self._health is not None:
            self._health.stop()
        log.info("worker.stopped", owner=self._owner)

    def _keep_default_connection(self, ledger: Engine) -> None:
        if token := self._settings.trackstar_access_token.get_secret_value():
            with ledger.begin() as db:
                place = of_connection(DEFAULT)
                decrypt = partial(self._vault.decrypt, place=place)
                ensure_default(db, lambda: binding.encrypt(db, self._vault, token, place), decrypt, token)

    # -- who hears of what: `_on_committed` and `_on_refused` run in the recorder's thread, and wait for nothing

    def _on_committed(self, results: list[Result], summary: CommitSummary) -> None:
        self.executor.forget(result.claim.lease for result in results)
        self._relay.put(summary.events)
        if summary.events:
            self._webhooks.wake()
        if summary.resumed:
            self._dispatcher.arrived(summary.resumed)
        if summary.changed_holds or any(isinstance(result, ConfirmResult) for result in results):
            self._look_for_events()
        attempted = [result for result in results if isinstance(result, AttemptResult)]
        if any(result.transition.run_at for result in attempted):
            self._maintenance.loop.wake()  # a retry may be due before the next poll
        self._reporter.put(results, summary)
        self._outages.put(results, summary)
        for result in attempted:
            if result.claim.id in summary.applied:
                runtime = sum(row.duration_ms or 0 for row in result.attempts) / 1000
                self._subscriber.decided(result.claim.id, result.transition, runtime=runtime)
        count_recorded(self._metrics, results, summary)

    def _on_crawled(self) -> None:
        self._maintenance.loop.wake()  # reads and retries are due now
        self._look_for_events()

    def _on_refused(self, result: Result) -> None:
        self.executor.forget([result.claim.lease])

    def _on_held(self, held: frozenset[str] | int) -> None:
        alert_on_holds(held)
        if isinstance(held, int):
            count_held(self._metrics, TRACKSTAR_OUTAGE, held)
        else:
            count_held(self._metrics, OUTAGE, len(held))
        self._look_for_events()

    def _on_expired(self, ended: list[tuple[Lapsed, Transition]]) -> None:
        log_expired(ended)
        count_expired(self._metrics, ended)
        for row, transition in ended:
            self._subscriber.decided(row.id, transition, order=(row.connection_id, row.order_id))
        self._look_for_events()

    def _look_for_events(self) -> None:
        self._relay.wake()
        self._webhooks.wake()


def _health_server(settings: Settings, loops: Sequence[Loop], vitals: Vitals, metrics: Metrics) -> HealthServer | None:
    port, address = settings.health_port, settings.health_address
    if port is None:
        return None
    try:
        return HealthServer(port, loops, vitals, address, metrics.render)
    except OSError as error:
        where = f"HEALTH_PORT is {port}" + (f" and HEALTH_ADDRESS {address}" if address else "")
        raise SettingsError(f"{where}, which cannot be used ({error.strerror}): choose another.") from error
