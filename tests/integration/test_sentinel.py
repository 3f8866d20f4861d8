"""REDIS_URL with sentinels: each part finds the primary, verified where it is said, and `doctor` tells what is wrong.

And what is no choice: a cluster. Real servers of Debian's redis-sentinel.
"""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from flower.views import BaseHandler
from harness.certificates import Tls
from harness.parts import lasting_port
from harness.sentinels import SERVICE, RedisProcess, Sentinels, running_sentinels, wait_until
from harness.shell import Operator
from redis import RedisError, ResponseError

from worker.broker.app import make_app
from worker.broker.flower_options import show_queues_of
from worker.client import CancelClient
from worker.errors import InboxUnavailableError
from worker.inputs.faults import fault
from worker.runtime.transport import Transport
from worker.sentinel import NoPrimaryError
from worker.streams import INBOX, connect_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with running_sentinels(tmp_path_factory.mktemp("sentinels")) as made:
        yield made


def a_client(url: str) -> int:
    """Connect as the threads of a worker do; return the port that was found."""
    with closing(connect_redis(url)) as redis:
        return int(redis.config_get("port")["port"])


def celery(_: str) -> int:
    with make_app() as app, app.connection_for_write() as connection:
        assert f"{SERVICE}:6379/0" in connection.as_uri()
        found = int(connection.default_channel.client.config_get("port")["port"])
        with app.pool.acquire() as pooled:  # by which remote commands go, and their answers
            assert found == int(pooled.default_channel.client.config_get("port")["port"])
        return found


def flower(_: str) -> int:
    with make_app() as app:
        show_queues_of(app)

    async def look() -> int:
        broker: Any = BaseHandler.get_broker(None)
        found = int((await broker.redis.config_get("port"))["port"])
        await broker.redis.aclose(close_connection_pool=True)
        return found

    return asyncio.run(look())


@pytest.mark.parametrize("part", [a_client, celery, flower], ids=lambda part: part.__name__)
def test_each_part_finds_the_primary(
    fleet: Sentinels, monkeypatch: pytest.MonkeyPatch, part: Callable[[str], int]
) -> None:
    nobody = f"127.0.0.1:{lasting_port()}"
    url = fleet.url.replace("sentinel://", f"sentinel://{nobody},")  # the first does not answer
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setattr(BaseHandler, "get_broker", None)

    assert fleet.servers[0].port == part(url)


def test_a_server_that_says_itself_that_it_is_a_replica_is_not_used(fleet: Sentinels, tmp_path: Path) -> None:
    watch = f"sentinel monitor other 127.0.0.1 {fleet.servers[1].port} 1\n"  # which is a replica
    with closing(RedisProcess(tmp_path, "redis-sentinel", watch)) as mistaken:
        mistaken.start()
        with (
            closing(connect_redis(f"sentinel://127.0.0.1:{mistaken.port}/other")) as redis,
            pytest.raises(NoPrimaryError),
        ):
            redis.ping()


def test_a_connection_to_a_primary_that_was_made_a_replica_is_made_anew(fleet: Sentinels) -> None:
    primary, replica = fleet.servers
    with closing(connect_redis(fleet.url)) as redis:
        redis.ping()
        before = redis.client_id()
        # Nobody has told the sentinels, so the next connection may come here too.
        primary.admin.replicaof("127.0.0.1", replica.port)
        try:
            with pytest.raises(RedisError) as refused:
                redis.set("cancellations:probe", "1")
        finally:
            primary.admin.replicaof("NO", "ONE")
        assert not isinstance(refused.value, ResponseError)
        assert before != redis.client_id()


def test_nothing_is_accepted_that_no_replica_has(tmp_path: Path) -> None:
    with running_sentinels(tmp_path) as alone, closing(CancelClient(alone.url)) as oms:
        oms.enqueue("shop-1", "o-1")
        assert 1 == alone.servers[1].admin.xlen(INBOX)
        alone.servers[1].close()
        with pytest.raises(InboxUnavailableError, match=r"0 of 1 replicas.*enqueue again"):
            oms.enqueue("shop-1", "o-2")
        with closing(CancelClient(alone.url, replicas=0)) as careless:
            careless.enqueue("shop-1", "o-3")


def test_what_a_primary_takes_that_was_replaced_is_not_accepted(tmp_path: Path) -> None:
    with running_sentinels(tmp_path, replicas=2) as fleet, closing(CancelClient(fleet.url)) as oms:
        oms.enqueue("shop-1", "o-1")
        old = fleet.primary()
        old.send(signal.SIGSTOP)
        new = fleet.wait_for_another_than(old)
        old.send(signal.SIGCONT)  # a primary still, as it believes, for some ten seconds
        with pytest.raises(InboxUnavailableError, match=r"0 of 1 replicas"):
            oms.enqueue("shop-1", "o-2")
        fleet.wait_until_replica(old)
        oms.enqueue("shop-1", "o-2")
        assert 2 == new.admin.xlen(INBOX)


def of(operator: Operator, part: str) -> list[tuple[str, str]]:
    """Return what the doctor says of a part, each with its colour."""
    found = json.loads(operator.run("doctor", "--json")[1])["findings"]
    return [(each["colour"], each["said"]) for each in found if each["part"] == part]


def test_the_doctor_asks_every_sentinel_and_counts_the_replicas(
    tmp_path: Path, make_database: Callable[[str], str]
) -> None:
    with running_sentinels(tmp_path) as fleet:
        operator = Operator(tmp_path, DATABASE_URL=make_database("sqlite"), REDIS_URL=fleet.url)
        primary = f"127.0.0.1:{fleet.servers[0].port}"
        three = [f"127.0.0.1:{each.port}" for each in fleet.sentinels]
        well = [("green", f"{each} names {primary}") for each in three]
        unset = ("yellow", "min-replicas-to-write is 0")
        assert [*well, ("green", "1 replicas of the primary"), unset] == of(operator, "Sentinel")
        fleet.sentinels[1].close()
        fleet.servers[0].admin.config_set("min-replicas-to-write", 1)
        fleet.servers[1].close()
        wait_until(lambda: not fleet.servers[0].admin.role()[2], "the replica's absence")
        well[1] = ("yellow", f"{three[1]} names nobody")
        assert [*well, ("red", "0 replicas of the primary")] == of(operator, "Sentinel")


def test_sentinels_that_name_nobody_are_told_in_a_sentence(
    tmp_path: Path, make_database: Callable[[str], str]
) -> None:
    url = f"sentinel://127.0.0.1:{lasting_port()}/{SERVICE}/0"
    with (
        closing(CancelClient(url)) as oms,
        pytest.raises(InboxUnavailableError, match="No Sentinel of REDIS_URL names"),
    ):
        oms.enqueue("shop-1", "o-1")
    operator = Operator(tmp_path, DATABASE_URL=make_database("sqlite"), REDIS_URL=url)
    assert [("red", "NoPrimaryError")] == of(operator, "Redis")


def test_sentinels_and_servers_are_verified(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    files = {"tls-cert-file": tmp_path / "server.pem", "tls-key-file": tmp_path / "server.pem"}
    shown = {**files, "tls-ca-cert-file": tls.bundle, "tls-auth-clients": "no", "tls-replication": "yes"}
    ports = [lasting_port() for _ in range(2)]
    watch = "".join(f"{word} {value}\n" for word, value in {"tls-port": ports[1], **shown}.items())
    watch += f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 1\n"
    with ExitStack() as stack:
        for name, lines in (("redis-server", {"tls-port": ports[0], **shown}), ("redis-sentinel", watch)):
            stack.enter_context(closing(RedisProcess(tmp_path, name, lines))).start()
        url = f"sentinels://127.0.0.1:{ports[1]}/{SERVICE}/0"
        with closing(connect_redis(f"{url}?ssl_ca_certs={tls.bundle}")) as redis:
            assert redis.ping()
        with closing(connect_redis(url)) as redis, pytest.raises(NoPrimaryError):
            redis.ping()


@pytest.mark.parametrize("slots", [False, True])
def test_a_cluster_is_refused_in_a_sentence(tmp_path: Path, make_database: Callable[[str], str], slots: bool) -> None:
    with closing(RedisProcess(tmp_path, "redis-server", {"cluster-enabled": "yes"})) as node:
        node.start()
        if slots:
            node.admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: "ok" == node.admin.execute_command("CLUSTER INFO")["cluster_state"], "a cluster")
        url = f"redis://127.0.0.1:{node.port}/0"
        with closing(connect_redis(url)) as redis, pytest.raises(RedisError) as refused:
            Transport(redis).look_at([INBOX], "worker")
        assert "part of a cluster, which is not supported" in fault(refused.value)
        operator = Operator(tmp_path, DATABASE_URL=make_database("sqlite"), REDIS_URL=url)
        assert any("part of a cluster, which is not supported" in said for _, said in of(operator, "Redis"))
