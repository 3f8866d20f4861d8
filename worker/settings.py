"""Everything the environment may say, read once and cross-checked. Knows names and limits; starts nothing.

Each name can also be given as NAME_FILE, a file that holds the value (how orchestrators mount secrets).
"""

from __future__ import annotations

import ssl
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.cancellation.lifecycle import Policy
from worker.cancellation.pace import DOCUMENTED_READS_PER_SECOND, DOCUMENTED_WRITES_PER_SECOND
from worker.environment import SettingsError, from_environment
from worker.inputs.proxy import is_proxy_url, password_of

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


class Settings(BaseSettings):
    """The worker's settings. Durations are seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    redis_url: str = "redis://localhost:6379/0"
    database_url: str = "sqlite:///cancellations.sqlite3"
    trackstar_api_key: SecretStr = SecretStr("")
    trackstar_base_url: str = "https://production.trackstarhq.com"
    trackstar_proxy: Annotated[SecretStr, AfterValidator(_check_proxy)] = SecretStr("")
    ca_bundle: Annotated[str, AfterValidator(_check_certificates)] = ""
    trackstar_access_token: SecretStr = SecretStr("")
    credential_keys: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)] = []
    sentry_dsn: SecretStr = SecretStr("")

    retry_base_seconds: float = Field(default=1.0, gt=0)
    retry_cap_seconds: float = Field(default=900.0, gt=0)
    retry_horizon_seconds: float = Field(default=86_400.0, gt=0)
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    request_timeout_seconds: float = Field(default=60.0, gt=0)
    max_response_bytes: int = Field(default=4_194_304, gt=0)
    lease_seconds: float = Field(default=180.0, gt=0)
    writes_per_second: float = Field(default=DOCUMENTED_WRITES_PER_SECOND, gt=0)
    reads_per_second: float = Field(default=DOCUMENTED_READS_PER_SECOND, gt=0)
    read_back_seconds: Annotated[tuple[float, ...], NoDecode, BeforeValidator(_split)] = (120.0, 900.0, 4200.0)
    concurrency: int = Field(default=32, ge=1, le=2000)
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    health_address: str = ""

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
    def policy(self) -> Policy:
        return Policy(
            retry_base=self.retry_base_seconds,
            retry_cap=self.retry_cap_seconds,
            retry_horizon=self.retry_horizon_seconds,
            read_back=self.read_back_seconds,
        )

    @property
    def keys(self) -> list[str]:
        return [key.get_secret_value() for key in self.credential_keys]

    def secrets(self) -> list[str]:
        """Return every value that may never leave the process."""
        single = (self.trackstar_api_key, self.trackstar_access_token, self.trackstar_proxy, self.sentry_dsn)
        values = [*(secret.get_secret_value() for secret in single), *self.keys]
        return [value for value in (*values, password_of(self.trackstar_proxy.get_secret_value())) if value]


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
    return f"{name}: {problem}." if name else f"{problem}."
