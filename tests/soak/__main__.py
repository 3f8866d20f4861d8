"""`make soak`: everything goes wrong at random, and then the ledger is compared with the truth.

Random faults from a printed seed, on real processes: for some minutes under a steady load (`minutes`), or until a
number of jobs has ended in a fast world (`jobs`). At the end: nothing lost, untrue, overlapping or
done twice, everything told to the feed, to the stream and to an endpoint whose receiver stumbles (`hearing`), and a
worker that lived through it all has not grown.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from cryptography.fernet import Fernet
from harness.deployment import API_KEY, Deployment
from harness.parts import PostgresServer, RedisServer, open_folder
from soak import hearing, jobs, minutes
from soak.faults import Scene
from soak.report import console, report

from worker.dev.sandbox import Sandbox
from worker.ledger import migrations
from worker.ledger.database import open_ledger
from worker.ledger.vault import TokenVault


def main() -> int:
    """Set the scene, soak, report; return 1 where a promise was broken."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--minutes", type=float, default=3.0)
    words.add_argument("--jobs", type=int, default=0, help="end so many jobs in a fast world instead")
    words.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    words.add_argument("--ledger", choices=["postgresql", "sqlite"], default="postgresql")
    wish = words.parse_args()
    length = f"{wish.jobs} jobs" if wish.jobs else f"{wish.minutes:g} minutes"
    console.print(f"seed {wish.seed}, {length}, {wish.ledger}", highlight=False)
    dice = random.Random(wish.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cancel-worker-soak-")))
        # By default a Redis that is killed while its disk is busy forgets up to two seconds of what it has confirmed.
        redis = RedisServer(folder, appendfsync="always")
        redis.start()
        stack.callback(redis.stop)
        postgres = None
        url = f"sqlite:///{folder}/ledger.sqlite3"
        if wish.ledger == "postgresql":
            postgres = PostgresServer.create(stack.enter_context(open_folder("cancel-worker-soak-pg-")) / "data")
            postgres.start()
            stack.callback(postgres.stop)
            url = postgres.url
        key = Fernet.generate_key().decode()
        ledger = open_ledger(url)
        migrations.migrate(ledger)
        ledger.dispose()
        sandbox = stack.enter_context(Sandbox(API_KEY, **minutes.sandbox(dice)))
        fast = stack.enter_context(jobs.fast_trackstar(wish.seed)) if wish.jobs else None
        address = fast.url if fast else sandbox.url
        settings = (jobs.SETTINGS if fast else {}) | hearing.SETTINGS
        deployment = Deployment(redis.url, url, sandbox.world, address, folder, key)
        stack.callback(deployment.close)
        vault, heard = TokenVault([key]), stack.enter_context(hearing.Hearing(wish.seed))
        deployment.connect(vault, jobs.SHOPS if fast else (minutes.SHOP,))
        heard.add(deployment, vault)
        scene = Scene(deployment, redis, postgres, dice, settings)
        found = jobs.soak_jobs(scene, fast, dice, wish.jobs) if fast else minutes.soak(scene, dice, wish.minutes)
        found["untruths"] += heard.untruths(deployment)
        found["faults"] += heard.struck
        return 0 if report(found | {"reached": heard.count, "again": heard.again}) else 1


if __name__ == "__main__":
    sys.exit(main())
