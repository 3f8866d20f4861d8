"""The Redis of the demo and the tests: a real one, in a folder of its own, and never somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis

from worker.embedded import EmbeddedRedis, NoRedisServerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_server_that_starts_again_at_its_address_has_kept_everything(server: EmbeddedRedis) -> None:
    with Redis.from_url(server.url) as client:
        client.set("a", "b")
    server.stop()
    server.start()

    with Redis.from_url(server.url) as client:
        assert b"b" == client.get("a")


def test_another_server_on_its_port_is_not_taken_for_its_own(server: EmbeddedRedis, tmp_path: Path) -> None:
    folder = tmp_path / "another"
    folder.mkdir()
    another = EmbeddedRedis(folder, server.port)

    with pytest.raises(NoRedisServerError, match="did not start"):
        another.start()
    assert another.process is not None
    assert 0 != another.process.wait(5)
    with Redis.from_url(server.url) as client:
        assert client.ping()
