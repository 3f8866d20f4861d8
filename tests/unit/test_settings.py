"""The settings: read once, cross-checked, refused in one sentence that says what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet

from worker.environment import SettingsError
from worker.settings import Settings, load_settings, load_worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()

    assert "https://production.trackstarhq.com" == settings.trackstar_base_url
    assert (1, 900, 86400) == (settings.retry_base_seconds, settings.retry_cap_seconds, settings.retry_horizon_seconds)
    assert (5, 60) == (settings.connect_timeout_seconds, settings.request_timeout_seconds)
    assert (4194304, 180) == (settings.max_response_bytes, settings.lease_seconds)
    assert (50, 10) == (settings.writes_per_second, settings.reads_per_second)
    assert (120, 900, 4200) == settings.read_back_seconds


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    monkeypatch.setenv("TRACKSTAR_API_KEY_FILE", str(tmp_path / "key"))

    assert "from-a-file" == load_worker_settings().trackstar_api_key.get_secret_value()


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKSTAR_API_KEY_FILE", "/nowhere/key")

    with pytest.raises(SettingsError, match="TRACKSTAR_API_KEY_FILE names /nowhere/key"):
        load_settings()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        pytest.param({"LEASE_SECONDS": "60"}, "set it to at least 158", id="lease below the longest request"),
        pytest.param({"RETRY_HORIZON_SECONDS": "90000"}, "at most 86400", id="horizon beyond the key's life"),
        pytest.param({"RETRY_CAP_SECONDS": "0.5"}, "RETRY_CAP_SECONDS is below", id="cap below base"),
        pytest.param({"READ_BACK_SECONDS": "900,120"}, "READ_BACK_SECONDS must rise", id="read-backs not rising"),
        pytest.param({"READ_BACK_SECONDS": " , "}, "READ_BACK_SECONDS: ", id="no read-backs"),
        pytest.param({"READ_BACK_SECONDS": "soon"}, "READ_BACK_SECONDS: ", id="read-backs no numbers"),
        pytest.param({"EVENT_SIGNING_SECRET": "swordfish"}, "EVENT_SIGNING_SECRET: must be whsec_", id="no secret"),
        pytest.param({"CONCURRENCY": "0"}, "CONCURRENCY: ", id="no threads"),
        pytest.param({"REQUEST_TIMEOUT_SECONDS": "x"}, "REQUEST_TIMEOUT_SECONDS: ", id="no number"),
        pytest.param(
            {"TRACKSTAR_ACCESS_TOKEN": "t"}, "CREDENTIAL_KEYS is missing. Make one with", id="token without key"
        ),
    ],
)
def test_settings_that_do_not_fit_refuse_to_start_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], sentence: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_worker_does_not_start_without_an_api_key() -> None:
    with pytest.raises(SettingsError, match="TRACKSTAR_API_KEY is missing"):
        load_worker_settings()


def test_no_secret_shows_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Fernet.generate_key().decode()
    given = {"TRACKSTAR_API_KEY": "the-api-key", "TRACKSTAR_ACCESS_TOKEN": "the-token", "CREDENTIAL_KEYS": key}
    signing = ["a" * 32, "b" * 32]
    monkeypatch.setenv("EVENT_SIGNING_SECRET", " ".join(f"whsec_{each}" for each in signing))
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert not [value for value in (*given.values(), *signing) if value in repr(settings)]
    assert set(settings.secrets()) == {*given.values(), *signing}
