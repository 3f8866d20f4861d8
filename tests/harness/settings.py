"""Settings of workers under test: limits so short that a test sees within seconds what ends when they do."""

from __future__ import annotations

# LEASE_SECONDS is the least that a worker accepts with these limits (5.6), and a tenth.
SHORT = {
    "CONNECT_TIMEOUT_SECONDS": "0.5",
    "REQUEST_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "5.7",
    "RETRY_CAP_SECONDS": "1",
    "READ_BACK_SECONDS": "1,2,3",
}
