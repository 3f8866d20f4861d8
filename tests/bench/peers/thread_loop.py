"""No queue at all: threads that take ids from standard input and do the job. The floor under every sync queue.

Does not keep: anything. What is not done when the process dies is forgotten.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from bench.peers.settings import CONCURRENCY
from bench.peers.sync_body import cancel

if __name__ == "__main__":
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        for line in sys.stdin:
            threads.submit(cancel, line.strip())
