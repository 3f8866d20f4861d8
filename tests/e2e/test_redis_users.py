"""The users that ops/redis ships: each does its work and is refused nothing of it, and may do nothing else."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import run
from harness.deployment import CELERY
from harness.flower_server import AUTH, flower
from harness.redis_users import SHIPPED, RedisWithUsers, overheard, password_of, redis_with_users, refusals
from harness.truth import record_id, untruths, wait_for_ends
from redis.exceptions import NoPermissionError

from worker.cli.doctor.redis import look_at_redis
from worker.client import CancelClient
from worker.runtime.transport import VITALS
from worker.settings import Settings
from worker.streams import DEAD_LETTERS, EVENTS, GROUP, HINTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.deployment import Deployment, MakeDeployment

    from worker.ledger.vault import TokenVault

KINDS = ("redis 7", "valkey")
SETTINGS = {"LEASE_SECONDS": "10", "REQUEST_TIMEOUT_SECONDS": "2", "CONNECT_TIMEOUT_SECONDS": "1"}
SHOP = "shop-1"
# What a worker may do and one that is well does not each time, with what it is for.
SELDOM = {
    **dict.fromkeys(("discard", "info"), "doctor"),
    **dict.fromkeys(("select", "role"), "a database other than 0; a primary behind Sentinel"),
    **dict.fromkeys(("srem", "smembers"), "Celery, of a list that is gone; remote control"),
    **dict.fromkeys(("zrem", "hdel", "xclaim"), "what another has left unacknowledged; an entry that ends its reader"),
    **dict.fromkeys(("rename", "xgroup|setid", "xgroup|destroy"), "a stream whose ids are ahead of the clock"),
    **dict.fromkeys(("xgroup|delconsumer", "unlink"), "readers that are gone for an hour; keys of another type"),
    **dict.fromkeys(("pttl", "publish", "zrange", "script|load", "script|exists", "eval"), "Celery, now and then"),
}


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisWithUsers]:
    with redis_with_users(tmp_path, request.param) as started:
        yield started


@pytest.fixture
def guarded(make_deployment: MakeDeployment, server: RedisWithUsers, vault: TokenVault) -> Iterator[Deployment]:
    """A deployment of which each part is the user that it should be; its own client to Redis is the admin's."""
    with make_deployment("sqlite", SETTINGS) as made:
        made.redis = server.as_user("admin")
        made.env["REDIS_URL"] = server.url_of("worker")
        made.client.close()
        made.client = CancelClient(server.url_of("producer"), made.database_url)
        made.connect(vault, [SHOP])
        yield made


def test_a_job_comes_to_its_end_and_nobody_is_refused_anything_on_the_way(
    guarded: Deployment, server: RedisWithUsers, tmp_path: Path
) -> None:
    names = [f"o-{number}" for number in range(20)]
    for name in names:
        guarded.trackstar.add_order(SHOP, name, script=["503"] if name == "o-3" else [])
    guarded.trackstar.add_order(SHOP, "taken", script=["pause"])
    with (
        overheard(server) as heard,
        flower(guarded, tmp_path, REDIS_URL=server.url_of("flower"), FLOWER_BASIC_AUTH=":".join(AUTH)) as page,
    ):
        first = guarded.start_worker()
        first.wait_until_consuming()
        guarded.wait_until(lambda: page.listens() and page.hears("celery@"), "Flower to hear the worker")
        guarded.client.enqueue_many({"connection_id": SHOP, "order_id": name} for name in names)
        guarded.redis.xadd(INBOX, {"job": b"no job"})
        guarded.redis.lpush("cancellations", b"no message")
        wait_for_ends(guarded, [record_id(name) for name in names])
        guarded.client.enqueue(SHOP, "taken")
        guarded.trackstar.wait_for_pause(SHOP, "taken", 30)
        first.send(signal.SIGKILL)
        second = guarded.start_worker()
        guarded.trackstar.release(SHOP, "taken")
        wait_for_ends(guarded, [record_id("taken")])
        guarded.wait_until(lambda: page.status(f"/task/{record_id('taken')}", AUTH) == 200, "Flower's page of a task")
        reader = server.as_user("events")
        told = reader.xread({EVENTS: "0"})[0][1]
        assert reader.xrange(DEAD_LETTERS)
        code, said = run(guarded, "doctor", "--json")
        assert 0 == second.stop()

    assert [] == refusals(guarded.redis)
    assert set() == granted("worker") - heard - SELDOM.keys()
    assert [] == untruths(guarded, [*names, "taken"], SHOP)
    # At least once: whoever reads them counts by their ids.
    assert 21 == len({fields[b"event_id"] for _, fields in told if fields[b"type"] == b"cancellation.ended"})
    assert "rights complete" in said, (code, said)


NOTHING_ELSE: tuple[tuple[Any, ...], ...] = (
    ("GET", INBOX),
    ("XRANGE", INBOX, "-", "+"),
    ("XREAD", "STREAMS", INBOX, "0"),
    ("XREADGROUP", "GROUP", "ledger", "me", "STREAMS", INBOX, ">"),
    ("XLEN", INBOX),
    ("XDEL", INBOX, "0-1"),
    ("XTRIM", INBOX, "MAXLEN", "0"),
    ("DEL", INBOX),
    ("RENAME", INBOX, "elsewhere"),
    ("XADD", EVENTS, "*", "type", "cancellation.ended"),
    ("XADD", HINTS, "*", "hint", "{}"),
    ("XADD", f"{INBOX}:oms-a", "*", "job", "{}"),
    ("XADD", "anything", "*", "job", "{}"),
    ("XREAD", "STREAMS", EVENTS, "0"),
    ("LPUSH", "cancellations", "{}"),
    ("LPUSH", "cancellations.worker", "{}"),
    ("HSET", f"cancellations:pace:w:{SHOP}", "next", "9"),
    ("SET", "key", "value"),
    ("EVAL", "return redis.call('XLEN', KEYS[1])", "1", INBOX),
    ("PUBLISH", "/0.celery.pidbox", "{}"),
    ("SUBSCRIBE", "/0.celeryev/task.succeeded"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("INFO",),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("REPLICAOF", "NO", "ONE"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SHUTDOWN",),
)


def test_a_producer_is_refused_everything_but_its_inbox(server: RedisWithUsers) -> None:
    producer = server.as_user("producer")

    assert producer.xadd(INBOX, {"job": "{}"})
    assert [] == [words for words in NOTHING_ELSE if not is_refused(producer, words)]


def is_refused(redis: Any, words: tuple[Any, ...]) -> bool:
    try:
        redis.execute_command(*words)
    except NoPermissionError:
        return True
    return False


def test_a_producer_with_a_name_has_the_inbox_of_its_name_and_no_other(tmp_path: Path) -> None:
    shipped = (SHIPPED / "users.acl").read_text()
    with redis_with_users(
        tmp_path, "valkey", shipped.replace("# user producer-oms-a", "user producer-oms-a")
    ) as server:
        producer = server.as_user("producer-oms-a")

        assert producer.xadd(f"{INBOX}:oms-a", {"job": "{}"})
        for other in (INBOX, f"{INBOX}:oms-b", f"{INBOX}:oms-a:more", EVENTS, "cancellations"):
            assert is_refused(producer, ("XADD", other, "*", "job", "{}"))


def test_who_reads_events_changes_nothing(server: RedisWithUsers) -> None:
    reader = server.as_user("events")
    words: tuple[str, ...]
    for words in (
        ("XADD", EVENTS, "*", "a", "b"),
        ("XTRIM", EVENTS, "MAXLEN", "0"),
        ("DEL", EVENTS),
        ("XDEL", EVENTS, "0-1"),
    ):
        assert is_refused(reader, words)
    for words in (("XREAD", "STREAMS", INBOX, "0"), ("XADD", INBOX, "*", "job", "{}"), ("FLUSHALL",), ("KEYS", "*")):
        assert is_refused(reader, words)


def test_a_worker_and_flower_empty_no_database_and_change_no_server(server: RedisWithUsers) -> None:
    for user in ("worker", "flower"):
        redis = server.as_user(user)
        words: tuple[str, ...]
        for words in (
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "SET", "maxmemory", "1"),
            ("ACL", "LIST"),
            ("SHUTDOWN",),
        ):
            assert is_refused(redis, words)
        for words in (
            ("GET", "a"),
            ("SET", "others", "b"),
            ("DEL", "others"),
            ("PUBLISH", "others", "a"),
            ("MONITOR",),
        ):
            assert is_refused(redis, words)
    for words in (("XADD", INBOX, "*", "job", "{}"), ("SCAN", "0")):
        assert is_refused(server.as_user("flower"), words)


def test_nobody_comes_in_without_a_name_or_with_a_wrong_password(server: RedisWithUsers) -> None:
    for url in (server.url, server.url_of("worker").replace("password-of-worker", "password-of-flower")):
        with closing(CancelClient(url)) as client, pytest.raises(Exception, match=r"password|Authentication|AUTH"):
            client.enqueue(SHOP, "o-1")


def test_with_remote_control_a_worker_needs_the_line_beside_its_user_and_no_more(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    shipped = (SHIPPED / "users.acl").read_text()
    beside = next(line for line in shipped.splitlines() if line.startswith("# user worker "))
    rights = beside.removeprefix("# user worker ")
    opened = "\n".join(
        f"{line} {rights}" if line.startswith("user worker ") else line for line in shipped.splitlines()
    )
    with redis_with_users(tmp_path, "valkey", opened) as server, make_deployment("sqlite") as made:
        made.redis = server.as_user("admin")
        made.env |= {"REDIS_URL": server.url_of("worker"), "CELERY_REMOTE_CONTROL": "true"}
        worker = made.start_worker(command=(*CELERY, "-n", "cancel@shelf-7"))
        worker.wait_until_consuming()
        with flower(made, tmp_path, REDIS_URL=server.url_of("flower"), FLOWER_BASIC_AUTH=":".join(AUTH)) as page:
            made.wait_until(page.listens, "Flower")
            made.wait_until(lambda: page.status("/worker/cancel@shelf-7", AUTH) == 200, "Flower's page of the worker")

        assert 0 == worker.stop()
        assert [] == refusals(made.redis)


def test_doctor_names_each_right_that_the_worker_lacks_and_changes_nothing(server: RedisWithUsers) -> None:
    shipped = rights_of("worker")
    admin, settings = server.as_user("admin"), Settings(redis_url=server.url_of("worker"))
    admin.xgroup_create(INBOX, GROUP, "0", mkstream=True)
    admin.xadd(INBOX, {"job": "{}"})
    before = all_of(admin)
    said, held = {}, {}
    for right in [each for each in shipped if each[0] in "+~&"]:
        set_rights(admin, [each for each in shipped if each != right])
        said[right] = " ".join(found.remedy for found in look_at_redis(settings))
        held[right] = all_of(admin)
    set_rights(admin, shipped)

    assert {"rights complete"} == {found.said for found in look_at_redis(settings) if found.said.startswith("rights")}
    # Of CLIENT the first subcommand that is met is named.
    assert {} == {right: words for right, words in said.items() if not re.search(rf" {re.escape(right)}[ ,|`]", words)}
    assert {} == {right: found for right, found in held.items() if found != before}


def granted(user: str) -> set[str]:
    """Return the commands that a user may run, but for those of each connection."""
    return {right[1:] for right in rights_of(user) if right.startswith("+")} - {"client", "ping"}


def rights_of(user: str) -> list[str]:
    lines = (SHIPPED / "users.acl").read_text().splitlines()
    return next(line.split()[2:] for line in lines if line.startswith(f"user {user} "))


def set_rights(admin: Any, rights: list[str]) -> None:
    admin.execute_command("ACL", "SETUSER", "worker", "reset", f">{password_of('worker')}", *rights)


def all_of(redis: Any) -> dict[bytes, bytes]:
    """Return every key with all that is in it, groups of readers too; not where doctor tries whether it can write."""
    return {key: redis.dump(key) for key in redis.scan_iter() if key != VITALS.encode()}
