"""Settings as people paste and mount them (B12 to B14): put right, or refused by name where they start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet

from worker.environment import MAX_FILE_BYTES, SettingsError, from_environment
from worker.settings import SECRETS, Settings, known_secrets, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = Fernet.generate_key().decode()
NUMBERS = ("CONCURRENCY", "HEALTH_PORT", "MAX_RESPONSE_BYTES", "WRITES_PER_SECOND", "RETRY_CAP_SECONDS")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in {*(name.upper() for name in Settings.model_fields), *SECRETS}:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """Return the sentence with which these settings are refused."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return str(refused.value)


@pytest.mark.parametrize(
    "pasted",
    ["key\n", "key\r\n", " key\t", "\ufeffkey", '"key"', "'key'", '\ufeff "key" \n', "\u200bkey\u200b", "\u00a0key"],
)
def test_what_surrounds_a_value_by_mistake_is_taken_off(monkeypatch: pytest.MonkeyPatch, pasted: str) -> None:
    monkeypatch.setenv("TRACKSTAR_API_KEY", pasted)
    monkeypatch.setenv("CONCURRENCY", pasted.replace("key", "7"))
    monkeypatch.setenv("REDIS_URL", pasted.replace("key", "redis://cache/0"))
    monkeypatch.setenv("CREDENTIAL_KEYS", pasted.replace("key", KEY))
    settings = load_settings()

    assert ("key", 7) == (settings.trackstar_api_key.get_secret_value(), settings.concurrency)
    assert ("redis://cache/0", [KEY]) == (settings.redis_url, settings.keys)


def test_what_surrounds_a_value_in_a_file_is_taken_off_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b'\xef\xbb\xbf"key"\r\n')
    monkeypatch.setenv("TRACKSTAR_API_KEY_FILE", f" {tmp_path / 'key'}\n")

    assert "key" == from_environment("TRACKSTAR_API_KEY")


@pytest.mark.parametrize("value", ["\"key'", '"', "k'e'y", '""key""'])
def test_a_quote_that_is_no_pair_around_the_value_belongs_to_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRACKSTAR_API_KEY", value)

    assert value.replace('""', '"') == from_environment("TRACKSTAR_API_KEY")


@pytest.mark.parametrize("value", ["", " ", "\n", "''", "\ufeff"])
def test_nothing_is_as_good_as_not_set(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONCURRENCY", value)

    assert 32 == load_settings().concurrency


@pytest.mark.parametrize("name", ["TRACKSTAR_API_KEY", "TRACKSTAR_ACCESS_TOKEN", "CREDENTIAL_KEYS", "REDIS_URL"])
@pytest.mark.parametrize("value", ["sec\nret", "sec\x00ret", "sec\u200bret", "sec\x1b[0mret", "sec\ud800ret"])
def test_what_cannot_be_seen_inside_a_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "value").write_bytes(value.encode(errors="surrogatepass"))
    said = refusal(monkeypatch, **{f"{name}_FILE": str(tmp_path / "value")})

    assert said.startswith(name)
    assert (False, False) == ("sec" in said.replace(str(tmp_path), ""), "\n" in said)


@pytest.mark.parametrize("name", ["TRACKSTAR_API_KEY", "TRACKSTAR_ACCESS_TOKEN"])
@pytest.mark.parametrize("value", ["schl\u00fcssel", "\uff4bey", "key\u2026"])
def test_a_key_that_no_header_can_carry_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    said = refusal(monkeypatch, CREDENTIAL_KEYS=KEY, **{name: value})

    assert (True, False) == (said.startswith(f"{name}: holds a character"), value in said)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1_000", "nan", "inf", "-inf", "1e400", "\uff11\uff10", "0x10", "1,5", "ten", "-1"])
def test_what_people_do_not_take_for_a_number_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert refusal(monkeypatch, **{name: value}).startswith(f"{name}: ")


@pytest.mark.parametrize("name", [*NUMBERS, "LEASE_SECONDS", "READ_BACK_SECONDS"])
def test_a_number_that_nothing_can_wait_for_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refusal(monkeypatch, **{name: "1e30"}).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["HEALTH_PORT", "CONCURRENCY"])
def test_an_address_that_kubernetes_puts_there_is_explained(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    said = refusal(monkeypatch, **{name: "tcp://10.0.0.7:8080"})

    assert said.startswith(f"{name}: ")
    assert "enableServiceLinks" in said


def test_a_value_and_a_file_for_one_setting_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    said = refusal(monkeypatch, TRACKSTAR_API_KEY="secret", TRACKSTAR_API_KEY_FILE=str(tmp_path / "key"))

    assert "TRACKSTAR_API_KEY and TRACKSTAR_API_KEY_FILE are both set: unset one of them." == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n", "is empty", id="blank"),
        pytest.param("key".encode("utf-16"), "no UTF-8 text", id="another encoding"),
        pytest.param(b"k" * (MAX_FILE_BYTES + 1), "too large", id="no value but a log"),
        pytest.param(None, "cannot be read: Is a directory", id="a folder"),
    ],
)
def test_a_file_that_holds_no_value_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path if content is None else tmp_path / "value"
    if content is not None:
        path.write_bytes(content)
    refused = refusal(monkeypatch, TRACKSTAR_API_KEY_FILE=str(path))

    assert refused.startswith(f"TRACKSTAR_API_KEY_FILE names {path}, which ")
    assert said in refused


def test_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too large" in refusal(monkeypatch, TRACKSTAR_API_KEY_FILE="/dev/zero")


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"TRACKSTAR_BASE_URL": "host.example"}, id="a host without https"),
        pytest.param({"TRACKSTAR_BASE_URL": "http://host.example"}, id="the key in clear"),
        pytest.param({"TRACKSTAR_BASE_URL": "https://good@evil.example"}, id="the key to a stranger"),
        pytest.param({"SENTRY_DSN": "https://sentry.io/1"}, id="no DSN"),
        pytest.param({"CREDENTIAL_KEYS": f"{KEY},no-fernet-key"}, id="no key"),
        pytest.param({"REDIS_URL": "redis://:pa/ss@cache"}, id="no address of a Redis"),
    ],
)
def test_what_would_fail_later_is_refused_at_the_start_by_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    said = refusal(monkeypatch, **environment)

    ((name, value),) = environment.items()
    assert (True, False, False) == (name in said, value in said, KEY in said)


def test_the_passwords_of_addresses_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:re%2Fdis@cache/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:data%40base@db/orders")
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:proxy-word@proxy:3128")

    assert {"re%2Fdis", "re/dis", "data%40base", "data@base", "proxy-word"} == set(load_settings().secrets())


def test_secrets_are_known_also_where_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:in/a-file@cache/0\n")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:data:b@se@db:port/orders")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "ann:one,bob:two")
    monkeypatch.setenv("CREDENTIAL_KEYS", "no-key,other")
    monkeypatch.setenv("TRACKSTAR_API_KEY", "lines\nbroken")
    monkeypatch.setenv("EVENT_SIGNING_SECRET", "whsec_short whsec_older")

    assert {"short", "older"} <= set(known_secrets())
    assert {"in/a-file", "data:b@se", "one", "two", "no-key", "other", "lines\nbroken"} <= set(known_secrets())
