"""A client with which a command asks Trackstar: few questions, and short patience. Knows settings; asks nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.environment import SettingsError
from worker.trackstar.client import TrackstarClient

if TYPE_CHECKING:
    from worker.settings import Settings

MAX_PATIENCE_SECONDS = 15.0


def asking_client(settings: Settings, patience: float = MAX_PATIENCE_SECONDS) -> TrackstarClient:
    """Return a client for one thread, with so many seconds for a request. Raises SettingsError without an API key."""
    key = settings.trackstar_api_key.get_secret_value()
    if not key:
        raise SettingsError("Set TRACKSTAR_API_KEY: without it Trackstar answers nobody.")
    return TrackstarClient(
        settings.trackstar_base_url,
        key,
        connect_timeout=min(settings.connect_timeout_seconds, patience),
        request_timeout=min(settings.request_timeout_seconds, patience),
        max_response_bytes=settings.max_response_bytes,
        threads=1,
        ca_bundle=settings.ca_bundle,
        proxy=settings.trackstar_proxy.get_secret_value(),
    )
