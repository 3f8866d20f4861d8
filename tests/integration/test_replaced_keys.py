"""CREDENTIAL_KEYS that were replaced (B15): the token of the settings is encrypted anew, and nobody else waits."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy.exc import ProgrammingError

from worker.cancellation.policy import Policy
from worker.ledger import connections
from worker.ledger.database import read_only
from worker.ledger.vault import TokenVault, fingerprint
from worker.runtime.known_keys import NAMES, KnownKeys, workers_without
from worker.runtime.maintenance import Handlers, Maintenance
from worker.streams import GROUP, INBOX

if TYPE_CHECKING:
    from conftest import Logged
    from redis import Redis
    from sqlalchemy import Engine

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


def test_a_default_token_that_no_key_reads_is_encrypted_anew(ledger: Engine) -> None:
    vault = TokenVault([NEW])
    with ledger.begin() as db:
        connections.add(db, connections.DEFAULT, TokenVault([OLD]).encrypt("token"))
    for _ in range(2):
        with ledger.begin() as db:
            connections.ensure_default(db, lambda: vault.encrypt("token"), vault.decrypt, "token")

    with read_only(ledger) as db:
        assert "token" == vault.decrypt(connections.encrypted_tokens(db)[connections.DEFAULT])


@pytest.mark.parametrize(
    ("fault", "event"),
    [
        (ProgrammingError("INSERT", {}, Exception("permission denied")), "housekeeper.start_failed"),
        (ValueError("a bug"), "housekeeper.start_crashed"),
    ],
)
def test_a_start_that_fails_holds_up_nobody(ledger: Engine, logged: Logged, fault: Exception, event: str) -> None:
    told: SimpleQueue[str] = SimpleQueue()

    def at_start(_: Engine) -> None:
        told.put("start")
        raise fault

    def say(*_: Any) -> None:
        told.put("work")

    handlers = Handlers(
        at_start=at_start, on_ready=say, rescue=say, confirm=say, publish_events=lambda: told.put("work"), expired=say
    )
    with ledger.begin() as db:  # an event that waits to be published is something to do
        connections.add(db, "shop-1", "encrypted")
        connections.remove(db, "shop-1")
    housekeeper = Maintenance(ledger, "w-1", 60.0, 50.0, Policy(), handlers)
    housekeeper.tick()
    housekeeper.tick()

    assert event == logged.wait_for(event)["event"]
    assert "start" == told.get(timeout=5)
    assert event not in logged.events()  # told once


def test_a_fingerprint_is_of_the_key_and_does_not_tell_it() -> None:
    assert fingerprint(NEW) == fingerprint(NEW)
    assert fingerprint(NEW) != fingerprint(OLD)
    assert fingerprint(NEW) not in NEW
    assert 16 == len(fingerprint(NEW))


def test_a_running_worker_says_which_keys_it_knows_until_it_ends(redis: Redis) -> None:
    knows = KnownKeys(redis, "w-1", [fingerprint(NEW), fingerprint(OLD)])
    lacks = KnownKeys(redis, "w-2", [fingerprint(OLD)])
    for each in (knows, lacks):
        each._tell()

    assert ([], ["w-2"]) == (workers_without(redis, fingerprint(OLD)), workers_without(redis, fingerprint(NEW)))
    assert 0 < int(redis.ttl(f"{NAMES}w-2")) <= 60  # a worker that was killed is forgotten

    lacks.loop.start()
    assert lacks.loop.stop(5)
    assert [] == workers_without(redis, fingerprint(NEW))


def test_a_worker_that_reads_the_inbox_and_says_nothing_lacks_every_key(redis: Redis) -> None:
    assert [] == workers_without(redis, fingerprint(NEW))
    redis.xgroup_create(INBOX, GROUP, mkstream=True)
    redis.xgroup_createconsumer(INBOX, GROUP, "of an older release")

    assert ["of an older release"] == workers_without(redis, fingerprint(NEW))
