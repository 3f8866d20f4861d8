"""`make sabotage`: break the product on purpose, promise by promise, and see that the suite turns red.

A test that cannot fail proves nothing. Each entry below is a small wrong change and the tests that must notice it. The
changes are made in a copy; one that no longer fits the code is an error here too, so the list cannot rot.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "worker",
    "migrations",
    "tests",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Makefile",
    "docs",
    "Dockerfile",
    "ops",
    "requirements",
)
FAILED = 1  # pytest: some tests failed; anything else is not what we are looking for


class Sabotage(msgspec.Struct, frozen=True):
    """One wrong change: (file below `worker`, what stands there, what is put there), and who must notice."""

    promise: str
    changes: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


LEDGER = ("tests/integration/test_ledger.py",)

LIST = [
    Sabotage(
        "a claim is made only once (P2)",
        (
            (
                "ledger/selection.py",
                ".where(c.connection_id == name, PENDING, _IN_TIME)",
                ".where(c.connection_id == name, c.ended_at.is_(None), _IN_TIME)",
            ),
        ),
        LEDGER,
    ),
    Sabotage(
        "a record counts only while its claim is ours (P2)",
        (
            (
                "ledger/transitions.py",
                "return in_flight & (c.lease_owner == source.c.owner) & (c.claims == source.c.token)",
                "return in_flight | c.ended_at.is_(None) | c.ended_at.is_not(None)",
            ),
        ),
        LEDGER,
    ),
    Sabotage(
        "the inbox is acknowledged after the commit (P1)",
        (
            (
                "runtime/intake.py",
                "        accepted = self._store(requests, dead_letters)\n",
                "        accepted: list[CancelRequest] = []\n",
            ),
            (
                "runtime/intake.py",
                "        pipeline.execute()\n",
                "        pipeline.execute()\n        self._store(requests, dead_letters)\n",
            ),
        ),
        ("tests/integration/test_intake.py",),
    ),
    Sabotage(
        "a Celery producer's job is moved, never only popped (P1)",
        (
            (
                "runtime/celery_inbox.py",
                'self._redis.blmove(CELERY_LIST, ARRIVED, BLOCK_SECONDS, src="RIGHT", dest="LEFT") is not None',
                "self._redis.brpop([CELERY_LIST], BLOCK_SECONDS) is not None",
            ),
        ),
        ("tests/integration/test_celery_inbox.py",),
    ),
    Sabotage(
        "a Celery message is added before it is taken off (P1)",
        (
            (
                "runtime/celery_inbox.py",
                "    redis.call('XADD', inbox, '*', field, message)\n    redis.call('RPOP', KEYS[i])\n",
                "    redis.call('RPOP', KEYS[i])\n    redis.pcall('XADD', inbox, '*', field, message)\n",
            ),
        ),
        ("tests/integration/test_celery_inbox.py",),
    ),
    Sabotage(
        "one key per intent (P2)",
        (
            (
                "ledger/claims.py",
                "return self.id if self.generation == 1 else",
                'return f"{self.id}-{self.lease.token}" if self.generation == 1 else',
            ),
        ),
        ("tests/integration/test_state_machine.py",),
    ),
    Sabotage(
        "a replay has a key of its own (P2)",
        (("ledger/transitions.py", "generation=c.generation + 1,", "generation=c.generation,"),),
        ("tests/integration/test_withdraw_and_replay.py",),
    ),
    Sabotage(
        "a replay shakes off the answers of the generation before (P3)",
        (
            (
                "ledger/transitions.py",
                "claims=c.claims + 1,\n            attempts=0,",
                "claims=c.claims,\n            attempts=0,",
            ),
        ),
        ("tests/integration/test_state_machine.py", "tests/integration/test_withdraw_and_replay.py"),
    ),
    Sabotage(
        "a refusal after doubt is read back (P3)",
        (
            (
                "cancellation/lifecycle.py",
                "return outcome.kind is Kind.REFUSED and (state.in_doubt or outcome.read_first)",
                "return False",
            ),
        ),
        ("tests/unit/test_lifecycle.py",),
    ),
    Sabotage(
        "a time-out is in doubt (P3)",
        (
            (
                "cancellation/outcome.py",
                "kind = Kind.IN_DOUBT if answer.sent else Kind.NOT_SENT",
                "kind = Kind.NOT_SENT",
            ),
        ),
        ("tests/unit/test_outcome.py",),
    ),
    Sabotage(
        "a 200 proves only what it shows (P3)",
        (
            (
                "cancellation/lifecycle.py",
                'proven = outcome.order is not None and outcome.order.status == "cancelled"',
                "proven = True",
            ),
        ),
        ("tests/unit/test_lifecycle.py",),
    ),
    Sabotage(
        "a lost worker's request may have landed (P3)",
        (
            (
                "runtime/attempt.py",
                "Outcome(kind=Kind.IN_DOUBT, reason=WORKER_LOST)",
                "Outcome(kind=Kind.NOT_SENT, reason=WORKER_LOST)",
            ),
        ),
        ("tests/integration/test_state_machine.py", *LEDGER),
    ),
    Sabotage(
        "the text of an error stays inside (P6)",
        (
            ("trackstar/client.py", "call.sent, type(error).__name__)", "call.sent, str(error))"),
            ("trackstar/client.py", "except ValueError:  #", "except ValueError as error:  #"),
            ("trackstar/client.py", "raise InvalidHeader from None", "raise InvalidHeader(str(error)) from None"),
        ),
        ("tests/integration/test_trackstar_client.py",),
    ),
    Sabotage(
        "what was sent cannot be withdrawn (P3)",
        (
            (
                "cancellation/lifecycle.py",
                "    if state.verdict is not None:\n        return None\n    return _end_unproven(Status.WITHDRAWN",
                "    return _end_unproven(Status.WITHDRAWN",
            ),
        ),
        ("tests/unit/test_lifecycle.py",),
    ),
    Sabotage(
        "an event is noted as published after it was (P1)",
        (
            (
                "runtime/relay.py",
                "            self._add_to_stream(events)\n"
                "            self._published.extend(event.id for event in events)\n",
                "            self._published.extend(event.id for event in events)\n"
                "            self._mark_published()\n"
                "            self._add_to_stream(events)\n",
            ),
        ),
        ("tests/e2e/test_crash_matrix.py -k event",),
    ),
    Sabotage(
        "a malformed Celery message stops nobody (P1)",
        (
            (
                "runtime/intake.py",
                "        except UnacceptableMessage as error:\n"
                "            dead_letters.append(_dead_letter(entry, error.reason, str(error), source=CELERY_LIST))\n",
                "        except UnacceptableMessage:\n            raise\n",
            ),
        ),
        ("tests/e2e/test_celery_messages.py -k postgresql",),
    ),
    Sabotage(
        "a claim is measured from before its lease began (P2)",
        (("ledger/transitions.py", "asked_at = time.monotonic()", "asked_at = time.monotonic() + 3600"),),
        ("tests/e2e/test_leases.py -k paused_between",),
    ),
    Sabotage(
        "a lost worker's claim is taken over (P1)",
        (
            (
                "ledger/claims.py",
                'c.lease_expires_at <= db_now(), c.status == "in_flight")',
                'c.lease_expires_at <= db_now(), c.status == "queued")',
            ),
        ),
        LEDGER,
    ),
    Sabotage(
        "an ending worker gives back what was not consumed (P1)",
        (
            (
                "runtime/dispatcher.py",
                "            self._give_back_unconsumed(all_of_them=True)\n",
                "            self._executor.take_unconsumed(all_of_them=True)\n",
            ),
        ),
        ("tests/integration/test_dispatcher.py",),
    ),
    Sabotage(
        "a message that comes too late finds nothing (P2)",
        (
            (
                "runtime/executor.py",
                "[self._reserved.pop(record_id)[0].claim.lease",
                "[self._reserved[record_id][0].claim.lease",
            ),
        ),
        ("tests/unit/test_executor.py",),
    ),
    Sabotage(
        "what is in hand is not rescued (P2)",
        (
            (
                "runtime/executor.py",
                "            if claim.lease in self._in_hand:\n",
                "            if claim.lease is None:\n",
            ),
        ),
        ("tests/unit/test_executor.py",),
    ),
    Sabotage(
        "a bug does not end a thread (P8)",
        (
            (
                "runtime/loop.py",
                "        except Exception:  # noqa: BLE001 - a bug may not end the thread\n",
                "        except UnicodeError:\n",
            ),
        ),
        ("tests/unit/test_loop.py",),
    ),
    Sabotage(
        "results are kept while the ledger is away (P1)",
        (
            (
                "runtime/recorder.py",
                "        self._write_group()\n        return 0.0",
                "        group, self._group = self._group, []\n        self._write(group)\n        return 0.0",
            ),
        ),
        ("tests/integration/test_recorder.py",),
    ),
    Sabotage(
        "a silent Redis delays no record (P8)",
        (
            (
                "runtime/supervisor.py",
                "        self._outages.put(results, summary)\n",
                "        self._outages._evaluate_results(results, summary)\n",
            ),
        ),
        ("tests/e2e/test_broken_parts.py -k recorded_while",),
    ),
    Sabotage(
        "no statement makes a transition that the table does not know",
        (
            (
                "ledger/transitions.py",
                "@_writes(frm={S.WAITING}, to={S.PENDING})",
                "@_writes(frm={S.QUEUED}, to={S.PENDING})",
            ),
        ),
        ("tests/unit/test_transitions.py",),
    ),
    Sabotage(
        "a second SIGTERM ends at once",
        (("broker/bootstep.py", "        for number in STOP_SIGNALS:\n", "        for number in ():\n"),),
        ("tests/e2e/test_shutdown.py -k impatient",),
    ),
    Sabotage(
        "readiness is consumption",
        (("telemetry/health.py", "self._unconsumed_seconds()) > STALLED_SECONDS", "self._unconsumed_seconds()) < 0"),),
        ("tests/unit/test_health.py",),
    ),
    Sabotage(
        "no error of Celery ends the worker (P1)",
        (("broker/app.py", '    "worker_consumer": "worker.broker.consumer:SelfRestartingConsumer",\n', ""),),
        ("tests/e2e/test_celery_messages.py -k 'expect and postgresql'",),
    ),
    Sabotage(
        "a record of a claim is written once (P1)",
        (("ledger/results.py", "    results = _one_of_each_claim(results)\n", ""),),
        LEDGER,
    ),
    Sabotage(
        "all workers share one pace (P4)",
        (
            (
                "trackstar/pacing.py",
                "count = math.min(wanted, math.floor((now + ahead - first) / step) + 1) end",
                "count = wanted end",
            ),
        ),
        ("tests/integration/test_pacing.py",),
    ),
    Sabotage(
        "a 429 pauses its connection for all workers (P4)",
        (("trackstar/pacing.py", "if answer.status == HTTPStatus.TOO_MANY_REQUESTS:", "if answer.status == 999:"),),
        ("tests/e2e/test_many_connections.py -k '429 and postgresql'",),
    ),
    Sabotage(
        "a probe takes a send slot (P4)",
        (("cancellation/pace.py", "first = max(free_from, now)", "first = now"),),
        ("tests/unit/test_day.py",),
    ),
    Sabotage(
        "a flood leaves threads to its neighbours (P5)",
        (
            (
                "cancellation/fairness.py",
                "return min(max(1, capacity // RESERVE_FRACTION), RESERVE_MAX) if capacity > 1 else 0",
                "return 0",
            ),
        ),
        ("tests/unit/test_fairness.py",),
    ),
    Sabotage(
        "nothing starves (P5)",
        (("cancellation/fairness.py", "return min(owed, count) if owed >= AGING_BATCH else 0", "return 0"),),
        ("tests/unit/test_fairness.py",),
    ),
    Sabotage(
        "a held connection sends nothing (P5)",
        (
            (
                "ledger/transitions.py",
                "selection.next_of_shares(dialect, selection.OPEN)",
                "selection.next_of_shares(dialect, selection.ANY)",
            ),
            ("ledger/transitions.py", "selection.next_of_one(selection.OPEN)", "selection.next_of_one(selection.ANY)"),
        ),
        ("tests/integration/test_selection.py",),
    ),
    Sabotage(
        "urgent overtakes (P5)",
        (
            (
                "cancellation/fairness.py",
                '{"urgent": 0, "normal": 1, "bulk": 2}',
                '{"urgent": 2, "normal": 1, "bulk": 0}',
            ),
        ),
        ("tests/integration/test_selection.py",),
    ),
]


def copy() -> Path:
    """Copy what the tests need into a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="cancel-worker-sabotage-"))
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def spoil(folder: Path, sabotage: Sabotage) -> None:
    """Make the wrong changes. Raises LookupError where one does not fit the code any more."""
    for file, old, new in sabotage.changes:
        path = folder / "worker" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise LookupError(f"{file} holds this {text.count(old)} times, not once: {old!r}")
        path.write_text(text.replace(old, new))


def noticed(folder: Path, sabotage: Sabotage) -> bool:
    """Run the tests that must notice; stop at the first that does."""
    for tests in sabotage.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)]
        env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_AS_FOUND": "1"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode == FAILED:
            return True
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return False


def main() -> int:
    """Try every sabotage (or those whose promise holds the words given); return 1 if one went unnoticed."""
    chosen = [each for each in LIST if all(word in each.promise for word in sys.argv[1:])]
    unnoticed = 0
    for sabotage in chosen:
        folder = copy()
        try:
            spoil(folder, sabotage)
            seen = noticed(folder, sabotage)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        unnoticed += not seen
        print(f"{'noticed  ' if seen else 'UNNOTICED'}  {sabotage.promise}", flush=True)  # noqa: T201
    print(f"{len(chosen)} promises broken on purpose, {len(chosen) - unnoticed} noticed.")  # noqa: T201
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
