"""What goes wrong in a soak: each fault strikes real processes, and is over within seconds.

Knows how a part is broken; knows neither the load nor what must hold.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from harness.deployment import Deployment, Worker
from harness.messages import ALIEN

from worker.streams import INBOX

if TYPE_CHECKING:
    from random import Random

    from harness.parts import PostgresServer, RedisServer

SETTINGS = {
    "CONNECT_TIMEOUT_SECONDS": "0.5",
    "REQUEST_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "5.7",
    "RETRY_BASE_SECONDS": "0.2",
    "RETRY_CAP_SECONDS": "3",
    "READ_BACK_SECONDS": "2,6,12",
    "CONCURRENCY": "16",
}


class Fault(msgspec.Struct, frozen=True):
    """Something that goes wrong, and goes right again within `seconds`."""

    name: str
    strike: Callable[[Scene], None]


class Scene:
    """The deployment with all that can be broken. The first worker is never killed: it shows whether one grows."""

    def __init__(
        self,
        deployment: Deployment,
        redis: RedisServer,
        postgres: PostgresServer | None,
        dice: Random,
        settings: Mapping[str, str],
    ) -> None:
        self.deployment = deployment
        self.settings = SETTINGS | dict(settings)
        self.redis = redis
        self.postgres = postgres
        self.dice = dice
        self.survivor = self.start_worker()
        self.others = [self.start_worker(), self.start_worker()]

    def start_worker(self) -> Worker:
        return self.deployment.start_worker(**self.settings)

    def replace(self, end: Callable[[Worker], object]) -> None:
        number = self.dice.randrange(len(self.others))
        end(self.others[number])
        self.others[number] = self.start_worker()

    def pause_worker(self) -> None:
        worker = self.dice.choice([self.survivor, *self.others])
        worker.send(signal.SIGSTOP)
        time.sleep(self.dice.choice([2, 8]))  # within its lease, or past it
        worker.send(signal.SIGCONT)

    def redis_away(self, seconds: float) -> None:
        self.redis.kill()
        time.sleep(seconds)
        self.redis.start()

    def postgres_away(self, how: signal.Signals, seconds: float) -> None:
        if self.postgres is not None:
            self.postgres.stop(how)
            time.sleep(seconds)
            self.postgres.start()

    def cut_postgres_clients(self) -> None:
        if self.postgres is not None:
            self.postgres.end_clients()

    def strangers(self) -> None:
        for alien in self.dice.sample(ALIEN, 3):
            self.deployment.redis.lpush("cancellations", alien.raw)
        self.deployment.redis.xadd(INBOX, {"job": b"\x00rubbish"})


FAULTS = [
    Fault("a worker killed (SIGKILL)", lambda scene: scene.replace(Worker.kill)),
    Fault("a worker asked to end (SIGTERM)", lambda scene: scene.replace(Worker.stop)),
    Fault("a worker paused (SIGSTOP)", Scene.pause_worker),
    Fault("Redis restarted", lambda scene: scene.redis_away(0)),
    Fault("Redis away", lambda scene: scene.redis_away(4)),
    Fault("Redis cuts its clients", lambda scene: scene.deployment.redis.client_kill_filter(_type="normal")),
    Fault("PostgreSQL restarted", lambda scene: scene.postgres_away(signal.SIGQUIT, 0)),
    Fault("PostgreSQL away", lambda scene: scene.postgres_away(signal.SIGINT, 4)),
    Fault("PostgreSQL killed (SIGKILL)", lambda scene: scene.postgres_away(signal.SIGKILL, 1)),
    Fault("PostgreSQL cuts its clients", Scene.cut_postgres_clients),
    Fault("strangers write to Redis", Scene.strangers),
]
