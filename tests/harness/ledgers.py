"""On which kinds of ledger the end-to-end tests run.

The integration tests and the quick end-to-end tests run every statement on both kinds. The tests that kill processes
and break servers run on PostgreSQL, and on both kinds with CHAOS=1, which `make chaos` sets: `make test` has to stay
within minutes.
"""

from __future__ import annotations

import os

LEDGERS = ("sqlite", "postgresql")
SLOW_LEDGERS = ("postgresql", "sqlite") if os.environ.get("CHAOS") else ("postgresql",)
