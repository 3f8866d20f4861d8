"""On which kinds of ledger the slow suites run.

The statements are proven on both kinds by the integration tests and the quick end-to-end ones. What kills processes
and breaks servers runs on PostgreSQL, and on both kinds with CHAOS=1, as `make chaos` sets it: `make test` has to stay
within minutes.
"""

from __future__ import annotations

import os

SLOW_LEDGERS = ("postgresql", "sqlite") if os.environ.get("CHAOS") else ("postgresql",)
