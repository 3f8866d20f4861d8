"""What the frame tells a peer: its addresses, and how much it may do at once."""

from __future__ import annotations

import os

REDIS_URL = os.environ["REDIS_URL"]
DATABASE_URL = os.environ["DATABASE_URL"]
TRACKSTAR_URL = os.environ["TRACKSTAR_BASE_URL"]
CONCURRENCY = int(os.environ["BENCH_CONCURRENCY"])
HEADERS = {"x-trackstar-api-key": "api-key-of-the-bench", "x-trackstar-access-token": "token-of-the-bench"}
CONNECT_SECONDS = 5
READ_SECONDS = 60
