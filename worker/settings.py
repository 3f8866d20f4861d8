"""Everything the environment may say, read once and cross-checked. Knows names and limits; starts nothing.

Each name can also be given as NAME_FILE, a file that holds the value (how orchestrators mount secrets).
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from worker.cancellation.pace import DOCUMENTED_READS_PER_SECOND, DOCUMENTED_WRITES_PER_SECOND
from worker.cancellation.policy import Policy, Retention
from worker.cancellation.signature import Signer, bare_secrets, read_secrets
from worker.environment import SettingsError, from_environment
from worker.inputs.addresses import check_base_url, check_sentry_dsn, parse_redis_url, passwords_in
from worker.inputs.proxy import is_proxy_url
from worker.inputs.values import problem_of_header, problem_of_number
from worker.ledger.vault import CredentialsError, TokenVault
from worker.shared_settings import MAX_SECONDS

# What a lease holds on top of its requests: a late start, a recording that waits, a slow scheduler.
LEASE_MARGIN = 0.2  # of the longest attempt
LEASE_MARGIN_SECONDS = 2.0  # and this
KEY_LIFE_SECONDS = 86_400  # Trackstar keeps an Idempotency-Key for 24 h from the first request


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_proxy(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and not is_proxy_url(value.get_secret_value()):
        raise ValueError("set it to http://host:port, perhaps with user:password@ before the host")
    return value


def _check_certificates(path: str) -> str:
    try:
        if path:
            ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ValueError(f"no certificates in PEM can be read from {path} ({type(error).__name__})") from None
    return path


def _numeral(value: Any) -> Any:
    if isinstance(value, str) and (problem := problem_of_number(value)):
        raise ValueError(problem)
    return value


def _for_a_header(value: SecretStr) -> SecretStr:
    if problem := problem_of_header(value.get_secret_value()):
        raise ValueError(problem)
    return value


def _of_signatures(value: SecretStr) -> SecretStr:
    if value.get_secret_value():
        read_secrets(value.get_secret_value())
    return value


Seconds = Annotated[float, BeforeValidator(_numeral), Field(gt=0, le=MAX_SECONDS)]
DAY = 86_400.0
Days = Annotated[float, BeforeValidator(_numeral), Field(ge=0, le=36_500)]
PerSecond = Annotated[float, BeforeValidator(_numeral), Field(ge=0.01, le=10_000)]
Whole = Annotated[int, BeforeValidator(_numeral)]
Header = Annotated[SecretStr, AfterValidator(_for_a_header)]


class Settings(BaseSettings):
    """The worker's settings. Durations are seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's shape
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load_settings` gives, and nothing that `from_environment` has not read."""
        return (init_settings,)

    redis_url: str = Field(default="redis://localhost:6379/0", repr=False)
    database_url: str = Field(default="sqlite:///cancellations.sqlite3", repr=False)
    trackstar_api_key: Header = SecretStr("")
    trackstar_base_url: Annotated[str, AfterValidator(check_base_url)] = "https://production.trackstarhq.com"
    trackstar_proxy: Annotated[SecretStr, AfterValidator(_check_proxy)] = SecretStr("")
    ca_bundle: Annotated[str, AfterValidator(_check_certificates)] = ""
    trackstar_access_token: Header = SecretStr("")
    credential_keys: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)] = []
    event_signing_secret: Annotated[SecretStr, AfterValidator(_of_signatures)] = SecretStr("")
    sentry_dsn: SecretStr = SecretStr("")

    retry_base_seconds: Seconds = 1.0
    retry_cap_seconds: Seconds = 900.0
    retry_horizon_seconds: Seconds = 86_400.0
    connect_timeout_seconds: Seconds = 5.0
    request_timeout_seconds: Seconds = 60.0
    max_response_bytes: Whole = Field(default=4_194_304, gt=0, le=2**30)
    lease_seconds: Seconds = 180.0
    writes_per_second: PerSecond = DOCUMENTED_WRITES_PER_SECOND
    reads_per_second: PerSecond = DOCUMENTED_READS_PER_SECOND
    read_back_seconds: Annotated[tuple[Seconds, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)] = (
        *(120.0, 900.0, 4200.0),
    )
    not_found_grace_seconds: Annotated[float, BeforeValidator(_numeral), Field(ge=0, le=MAX_SECONDS)] = 4500.0
    force_sync: bool = True
    watch_days: Annotated[float, BeforeValidator(_numeral), Field(gt=0, le=365)] = 14.0
    retention_days: Days = 365.0
    snapshot_days: Days = 90.0
    dead_letter_days: Days = 30.0
    concurrency: Whole = Field(default=32, ge=1, le=2000)
    health_port: Whole | None = Field(default=None, ge=0, le=65_535)
    health_address: str = ""
    metrics_connections: bool = False
    celery_remote_control: bool = False
    webhook_concurrency: Whole = Field(default=256, ge=2, le=2000)
    webhook_allow_private: bool = False
    webhook_proxy: Annotated[SecretStr, AfterValidator(_check_proxy)] = SecretStr("")
    revision: str = Field(default="", pattern=r"^[\w.+-]*$", max_length=64)

    @field_validator("redis_url")
    @classmethod
    def _is_followed_alike(cls, url: str) -> str:
        parse_redis_url(url)
        return url

    @field_validator("sentry_dsn")
    @classmethod
    def _is_a_dsn(cls, dsn: SecretStr) -> SecretStr:
        if dsn.get_secret_value():
            check_sentry_dsn(dsn.get_secret_value())
        return dsn

    @field_validator("credential_keys")
    @classmethod
    def _are_keys(cls, keys: list[SecretStr]) -> list[SecretStr]:
        try:
            TokenVault([key.get_secret_value() for key in keys])
        except CredentialsError as error:
            raise ValueError(str(error)) from None
        return keys

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        least = self.longest_attempt_seconds * (1 + LEASE_MARGIN) + LEASE_MARGIN_SECONDS
        if self.lease_seconds < least:
            raise ValueError(
                f"LEASE_SECONDS is {self.lease_seconds:g}, but a cancel and its read-back may take "
                f"{self.longest_attempt_seconds:g} s: set it to at least {least:g}, or another worker could send the "
                "same cancel"
            )
        if self.retry_horizon_seconds > KEY_LIFE_SECONDS:
            raise ValueError(
                f"RETRY_HORIZON_SECONDS is {self.retry_horizon_seconds:g}: set it to at most {KEY_LIFE_SECONDS}, the "
                "life of an Idempotency-Key, or a late retry would be a second cancel"
            )
        if self.retry_cap_seconds < self.retry_base_seconds:
            raise ValueError("RETRY_CAP_SECONDS is below RETRY_BASE_SECONDS: raise it")
        if any(second <= first for first, second in pairwise((0.0, *self.read_back_seconds))):
            raise ValueError("READ_BACK_SECONDS must rise, as in 120,900,4200")
        if self.trackstar_access_token.get_secret_value() and not self.credential_keys:
            raise ValueError("TRACKSTAR_ACCESS_TOKEN is set, but CREDENTIAL_KEYS is missing. " + _HOW_TO_MAKE_A_KEY)
        return self

    @property
    def longest_attempt_seconds(self) -> float:
        """A cancel and its read-back, each to its very limit."""
        return 2 * (self.connect_timeout_seconds + self.request_timeout_seconds)

    @property
    def lease_margin_seconds(self) -> float:
        """What is left of a lease after the longest attempt: half for a late start, half for the recording."""
        return self.lease_seconds - self.longest_attempt_seconds

    @property
    def start_within_seconds(self) -> float:
        """How long after its claim a request may still begin."""
        return self.lease_margin_seconds / 2

    @property
    def retention(self) -> Retention:
        """For how long things are kept."""
        return Retention(
            facts=self.retention_days * DAY,
            documents=self.snapshot_days * DAY,
            dead_letters=self.dead_letter_days * DAY,
        )

    @property
    def policy(self) -> Policy:
        return Policy(
            retry_base=self.retry_base_seconds,
            retry_cap=self.retry_cap_seconds,
            retry_horizon=self.retry_horizon_seconds,
            read_back=self.read_back_seconds,
            not_found_grace=self.not_found_grace_seconds,
            watch=self.watch_days * DAY,
        )

    @property
    def event_signer(self) -> Signer | None:
        """What signs the entries of the streams of events."""
        stated = self.event_signing_secret.get_secret_value()
        return Signer(read_secrets(stated)) if stated else None

    @property
    def keys(self) -> list[str]:
        return [key.get_secret_value() for key in self.credential_keys]

    def secrets(self) -> list[str]:
        """Return every value that may never leave the process."""
        proxies = (self.trackstar_proxy, self.webhook_proxy)
        single = (self.trackstar_api_key, self.trackstar_access_token, *proxies, self.sentry_dsn)
        signing = bare_secrets(self.event_signing_secret.get_secret_value())
        named = [*(s.get_secret_value() for s in single), *self.keys, *signing]
        addresses = (self.redis_url, self.database_url, *(proxy.get_secret_value() for proxy in proxies))
        addressed = [*(password for each in addresses for password in passwords_in(each)), *_passwords_of_proxies()]
        return [value for value in (*named, *addressed) if value]


SECRETS = (
    "TRACKSTAR_API_KEY",
    "TRACKSTAR_ACCESS_TOKEN",
    "CREDENTIAL_KEYS",
    "EVENT_SIGNING_SECRET",
    "SENTRY_DSN",
    "FLOWER_BASIC_AUTH",
    "FLOWER_OAUTH2_SECRET",
    "FLOWER_COOKIE_SECRET",
)


def known_secrets() -> list[str]:
    """Return every secret that the environment holds, also one in a setting that is refused.

    For programs that may hold more secrets than they have settings read: a command, Flower.
    """
    found = _passwords_of_proxies()
    for name in (*SECRETS, "REDIS_URL", "DATABASE_URL"):
        value = ""
        with suppress(SettingsError):
            value = from_environment(name) or ""
        raw = os.environ.get(name, "")
        if name in SECRETS:
            pieces = [piece for piece in value.split(",") if piece]
            pieces += bare_secrets(value) if name == "EVENT_SIGNING_SECRET" else []
            found += [raw, value, *pieces, *(piece.partition(":")[2] for piece in pieces if "://" not in piece)]
        else:
            found += [*passwords_in(raw), *passwords_in(value)]
    return [each for each in dict.fromkeys(found) if each]


def _passwords_of_proxies() -> list[str]:
    return [
        password
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy")
        for password in passwords_in(value)
    ]


_HOW_TO_MAKE_A_KEY = (
    "Make one with `python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'`"
)


@cache
def load_settings() -> Settings:
    """Read the environment. Raises SettingsError with one sentence that says what to change."""
    given = {name: value for name in Settings.model_fields if (value := from_environment(name.upper())) is not None}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error


def load_worker_settings() -> Settings:
    """Read the environment for a process that calls Trackstar. Raises SettingsError as `load_settings` does."""
    settings = load_settings()
    if not settings.trackstar_api_key.get_secret_value():
        raise SettingsError("TRACKSTAR_API_KEY is missing: set it to your organisation's Trackstar API key.")
    return settings


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    problem = first["msg"].removeprefix("Value error, ").removesuffix(".")
    name = "_".join(str(part) for part in first["loc"][:1]).upper()
    return f"{problem}." if not name or problem.startswith(name) else f"{name}: {problem}."
