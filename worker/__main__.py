"""Where the command `cancel-worker` begins: it can be ended before anything else of it is loaded.

As process 1 of a container a program without a handler of its own never hears SIGTERM, and Celery sets one only when
the worker runs.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

ENDED_BY_SIGTERM = 128 + signal.SIGTERM
LAST_SECONDS = 10  # then it ends in any case


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end)
    from worker.cli import main as run  # noqa: PLC0415 - loading it takes a while

    run()


def _end(*_: object) -> NoReturn:
    # What is raised in a finalizer, or in the middle of a driver, may be swallowed there.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(ENDED_BY_SIGTERM))
    signal.alarm(LAST_SECONDS)
    sys.exit(ENDED_BY_SIGTERM)


if __name__ == "__main__":
    main()
