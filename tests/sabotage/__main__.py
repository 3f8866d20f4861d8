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
                "            accepted = self._acceptance.take_in(entries)\n",
                "            self._reader.settle(entries)\n            accepted = self._acceptance.take_in(entries)\n",
            ),
        ),
        ("tests/integration/test_intake.py",),
    ),
    Sabotage(
        "a Celery producer's job is moved, never only popped (P1)",
        (
            (
                "runtime/celery_inbox.py",
                'wait_unread(self._redis, "BLMOVE", CELERY_LIST, ARRIVED, "RIGHT", "LEFT", BLOCK_SECONDS)',
                'wait_unread(self._redis, "BRPOP", CELERY_LIST, BLOCK_SECONDS)',
            ),
        ),
        ("tests/integration/test_celery_inbox.py",),
    ),
    Sabotage(
        "a Celery message is added before it is taken off (P1)",
        (
            (
                "runtime/celery_inbox.py",
                "    add(field, message)\n    redis.call('RPOP', KEYS[i])\n",
                "    redis.call('RPOP', KEYS[i])\n    add(field, message)\n",
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
                "return outcome.read_first or (outcome.kind is Kind.REFUSED and state.in_doubt)",
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
                "shown = outcome.order is not None and judge_order(outcome.order).shows is OrderState.CANCELLED",
                "shown = True",
            ),
        ),
        ("tests/unit/test_lifecycle.py",),
    ),
    Sabotage(
        "a stored yes is read back before it is believed (P3)",
        (("cancellation/outcome.py", "        read_first=reply.replayed,", "        read_first=False,"),),
        ("tests/unit/test_outcome.py", "tests/integration/test_state_machine.py"),
    ),
    Sabotage(
        "what fits the row is written, though something older was read beside it (P3)",
        (("ledger/results.py", "return r.claim.verdict == verdict, ", "return True, "),),
        ("tests/integration/test_confirmations.py",),
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
            ("trackstar/client.py", "certificate_problem(error) or type(error).__name__", "str(error)"),
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
                "            self._add_to_stream(told)\n            self._published.extend(events)\n",
                "            self._published.extend(events)\n"
                "            self._mark_published()\n"
                "            self._add_to_stream(told)\n",
            ),
        ),
        ("tests/e2e/test_crash_matrix.py -k event",),
    ),
    Sabotage(
        "a malformed Celery message stops nobody (P1)",
        (
            (
                "runtime/acceptance.py",
                "except (InvalidRequest, UnacceptableMessage) as error:",
                "except InvalidRequest as error:",
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
        "an order that reads open is proof after two crawls, and not after one (P3)",
        (("cancellation/proof.py", "ENOUGH_CRAWLS = 2\n", "ENOUGH_CRAWLS = 1\n"),),
        ("tests/integration/test_freshness_loop.py -k two_crawls",),
    ),
    Sabotage(
        "freshness is measured from the end of our last request (P3)",
        (
            (
                "ledger/claims.py",
                "        ended_at=row.ended_at,\n        as_of",
                "        ended_at=row.first_sent_at,\n        as_of",
            ),
        ),
        ("tests/integration/test_freshness_loop.py -k while_our_request",),
    ),
    Sabotage(
        "the second look compares each order with its own connection's records (P3)",
        (
            (
                "ledger/rereads.py",
                'c.connection_id == sa.bindparam("connection_id", type_=sa.Text()),',
                'sa.bindparam("connection_id", type_=sa.Text()) != "",',
            ),
        ),
        ("tests/integration/test_freshness_loop.py -k same_name",),
    ),
    Sabotage(
        "Celery's consumer starts again at most once a second",
        (("broker/consumer.py", "self._restarted + RESTART_SECONDS - ", "self._restarted - "),),
        ("tests/e2e/test_broken_parts.py -k read-only",),
    ),
    Sabotage(
        "a record of a claim is written once (P1)",
        (("ledger/results.py", "    results = _one_of_each_claim(db, results)\n", ""),),
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
                "_SHARES = _claiming_of(selection.OPEN)",
                "_SHARES = _claiming_of(selection.ANY)",
            ),
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
    # ---- values from outside, and the surroundings
    Sabotage(
        "what a server asks to wait is clamped (P5)",
        (("inputs/headers.py", "RetryAfter(min(max(0.0, seconds), cap))", "RetryAfter(max(0.0, seconds))"),),
        ("tests/unit/test_headers.py",),
    ),
    Sabotage(
        "rubbish in one connection's pace stops no other (P5)",
        (("trackstar/pacing.py", "local state = redis.pcall('HMGET'", "local state = redis.call('HMGET'"),),
        ("tests/integration/test_pace_contents.py",),
    ),
    Sabotage(
        "a late request gives its claim back (P2)",
        (
            (
                "trackstar/pacing.py",
                "while send_at <= until and self._sleep_until(send_at):",
                "while self._sleep_until(send_at):",
            ),
        ),
        ("tests/integration/test_pace_contents.py -k margin",),
    ),
    Sabotage(
        "a long pause ends by itself (P5)",
        (("runtime/maintenance.py", "done += self._end_pauses() if due.is_due(due.hold_end) else 0", "done += 0"),),
        ("tests/integration/test_pauses.py",),
    ),
    Sabotage(
        "a connection is not used again after an interim answer (P3)",
        (("trackstar/connection.py", "            and not self._interim\n", ""),),
        ("tests/integration/test_odd_answers.py",),
    ),
    Sabotage(
        "a connection is not used again when more came than was asked for (P3)",
        (("trackstar/connection.py", "spoiled = not self.will_close and self._has_more()", "spoiled = False"),),
        ("tests/integration/test_odd_answers.py",),
    ),
    Sabotage(
        "an interim answer is read over (P3)",
        (
            (
                "trackstar/connection.py",
                "while 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:",
                "while status == 100:",
            ),
        ),
        ("tests/integration/test_odd_answers.py",),
    ),
    Sabotage(
        "an error in a 200 is no success (P3)",
        (("cancellation/outcome.py", "if order is None and reply.message is not None:", "if False:"),),
        ("tests/unit/test_outcome.py",),
    ),
    Sabotage(
        "the size of an entry is known before it is read (P1)",
        (
            (
                "runtime/inbox_script.py",
                "if size > longest and refusal == '' then",
                "if size > longest * 1000 and refusal == '' then",
            ),
        ),
        ("tests/integration/test_odd_entries.py",),
    ),
    Sabotage(
        "an id far ahead of the clock closes no inbox (P1)",
        (("runtime/stream_ids.py", "> now + ahead and left == 0", "> now * 2e9 and left == 0"),),
        ("tests/integration/test_odd_entries.py",),
    ),
    Sabotage(
        "a failover does not lose what was accepted (P1)",
        (("client.py", "self._replicas_to_wait_for())", "0)"),),
        ("tests/integration/test_odd_entries.py",),
    ),
    Sabotage(
        "behind Sentinel nothing is accepted that no replica has (P1)",
        (("client.py", "            return 1\n", "            return 0\n"),),
        ("tests/integration/test_sentinel.py",),
    ),
    Sabotage(
        "a connection ends when its server was made a replica (P8)",
        (("sentinel.py", "if not isinstance(error, ReadOnlyError) and", "if"),),
        ("tests/integration/test_sentinel.py",),
    ),
    Sabotage(
        "a server that is no primary is not used as one, whoever names it (P1)",
        (("sentinel.py", 'if as_text(role[0]) != "master":', "if not role:"),),
        ("tests/integration/test_sentinel.py",),
    ),
    Sabotage(
        "a cluster is refused in a sentence (P8)",
        (("inputs/faults.py", '    "ClusterCrossSlotError": "CROSSSLOT",\n', ""),),
        ("tests/integration/test_sentinel.py",),
    ),
    Sabotage(
        "a flood of bad messages pushes no outcome off the stream (P8)",
        (("runtime/relay.py", 'DEAD_LETTERS if event.type.startswith("dead_letter.") else EVENTS', "EVENTS"),),
        ("tests/integration/test_odd_entries.py",),
    ),
    Sabotage(
        "what a person sees is shown as it is (P6)",
        (("cli/parts.py", "super().render_str(visible(text), ", "super().render_str(text, "),),
        ("tests/integration/test_hostile_text.py",),
    ),
    Sabotage(
        "readiness asks whether what is due goes out (P8)",
        (("runtime/backlog.py", 'self._vitals.found("backlog", ', '("backlog", '),),
        ("tests/integration/test_backlog.py",),
    ),
    Sabotage(
        "a thread that fails for long makes a worker unready (P8)",
        (("telemetry/health.py", "now - failing_since > STALLED_SECONDS", "now - failing_since > 1e9"),),
        ("tests/unit/test_vitals.py",),
    ),
    Sabotage(
        "rediss verifies the server (P6)",
        (
            (
                "inputs/addresses.py",
                'return {"ssl_cert_reqs": "required", "ssl_check_hostname": words.get("ssl_check_hostname", True)}',
                'return {"ssl_cert_reqs": "none", "ssl_check_hostname": False}',
            ),
        ),
        ("tests/integration/test_redis_addresses.py -k nobody_vouches",),
    ),
    Sabotage(
        "no key goes out in clear (P6)",
        (("inputs/addresses.py", 'if parts.scheme == "http" and not _is_this_machine(parts.hostname):', "if False:"),),
        ("tests/unit/test_addresses.py -k tell_the_key",),
    ),
    Sabotage(
        "a replaced key stops nobody (P5)",
        (
            (
                "ledger/connections.py",
                "        with suppress(CredentialsError):\n            known = decrypt(kept)",
                "        known = decrypt(kept)",
            ),
        ),
        ("tests/integration/test_replaced_keys.py -k no_key_reads",),
    ),
    Sabotage(
        "a jump of the clock ends no lease early (P2)",
        (("runtime/maintenance.py", "if jump > CLOCK_STEP_SECONDS:", "if jump > 1e9:"),),
        ("tests/integration/test_maintenance.py -k jumped",),
    ),
    Sabotage(
        "a log that cannot be written costs no thread (P8)",
        (
            (
                "telemetry/log_stream.py",
                "        except (OSError, ValueError):\n            return False",
                "        except ValueError:\n            return False",
            ),
        ),
        ("tests/e2e/test_machine.py -k full_disk",),
    ),
    Sabotage(
        "silent probes are cut (P8)",
        (("telemetry/health_server.py", "if len(self._open) > MAX_CONNECTIONS:", "if len(self._open) > 1e9:"),),
        ("tests/integration/test_health_server.py -k thousand",),
    ),
    Sabotage(
        "a session that cannot be used is thrown away (P8)",
        (("ledger/sessions.py", "            context.is_disconnect = True", "            pass"),),
        ("tests/integration/test_database_surroundings.py -k read_only_is_made_anew",),
    ),
    Sabotage(
        "behind a pooler nothing is kept of a session (P8)",
        (
            (
                "ledger/sessions.py",
                'if made.execute("SELECT pg_backend_pid()").fetchone() == (made.info.backend_pid,):',
                "if made:",
            ),
        ),
        ("tests/integration/test_database_surroundings.py -k keeps_nothing",),
    ),
    Sabotage(
        "what the address of a database says is kept (P8)",
        (("ledger/sessions.py", "**self._planning, **asked.settings}", "**self._planning}"),),
        ("tests/integration/test_database_surroundings.py -k kept_and_added",),
    ),
    Sabotage(
        "a migration waits for another (P8)",
        (("ledger/migrations.py", "while sentence := begin(db):", "if sentence := begin(db):"),),
        ("tests/integration/test_migrate_errors.py -k waits_as_long",),
    ),
    Sabotage(
        "a worker waits for its database (P8)",
        (("cli/service.py", "        if not passes(error):\n            raise\n", "        raise\n"),),
        ("tests/e2e/test_database_surroundings.py -k before_its_database",),
    ),
    Sabotage(
        "a killed worker leaves no list in Redis for ever (P8)",
        (("broker/worker_queue.py", "pipeline(transaction=True)", "pipeline(transaction=False)"),),
        ("tests/integration/test_worker_queue.py",),
    ),
    Sabotage(
        "no token is in the audit (people)",
        (("ledger/audit.py", '{"id", "access_token", "secret", "url"}', '{"id", "secret", "url"}'),),
        ("tests/integration/test_audit.py -k no_row_holds",),
    ),
    Sabotage(
        "of an endpoint's address only its origin is in the audit (people)",
        (("ledger/audit.py", '{"id", "access_token", "secret", "url"}', '{"id", "access_token", "secret"}'),),
        ("tests/integration/test_endpoints_commands.py -k never_again",),
    ),
    Sabotage(
        "a secret in a reason is not kept (people)",
        (("cli/parts.py", "scrubbed(why) if why else None", "why"),),
        ("tests/integration/test_audit.py -k secret",),
    ),
    Sabotage(
        "a share has honest bounds (people)",
        (("cancellation/chances.py", " + z * z / (4 * trials * trials))", ")"),),
        ("tests/unit/test_chances.py",),
    ),
    Sabotage(
        "a chance is small where the best that can be hoped for is (people)",
        (("cancellation/chances.py", "self.bounds[1] < SMALL_SHARE", "self.bounds[0] < SMALL_SHARE"),),
        ("tests/unit/test_chances.py",),
    ),
    Sabotage(
        "an answer without an order wipes no document (people)",
        (("ledger/documents.py", "sa.null()), else_=c.order_snapshot)", "sa.null()), else_=sa.null())"),),
        ("tests/integration/test_documents.py",),
    ),
    Sabotage(
        "an answer that comes too late leaves no document (people)",
        (
            (
                "ledger/results.py",
                "for r in results if (r.claim.id, r.claim.lease.token) in applied)",
                "for r in results)",
            ),
        ),
        ("tests/integration/test_documents.py -k too_late",),
    ),
    Sabotage(
        "each is on one page of a list (people)",
        (
            (
                "ledger/filters.py",
                "(c.received_at < place.received_at) | (c.id < place.id)]",
                "(c.received_at < place.received_at)]",
            ),
        ),
        ("tests/integration/test_find.py -k page_by_page",),
    ),
    Sabotage(
        "who only asks reads no document (people)",
        (("ledger/queries.py", "    if snapshot:\n        beside", "    if snapshot or policy:\n        beside"),),
        ("tests/integration/test_documents.py",),
    ),
    Sabotage(
        "nothing undecided is forgotten (people)",
        (
            (
                "ledger/retention.py",
                "c.ended_at < since, _DECIDED, ~_UNTOLD)\n    query",
                "c.ended_at < since, ~_UNTOLD)\n    query",
            ),
        ),
        ("tests/integration/test_forget.py -k nothing_undecided",),
    ),
    Sabotage(
        "a person's words in an event are erased (people)",
        (("ledger/redaction.py", 'if "note" in payload:', 'if "nobody" in payload:'),),
        ("tests/integration/test_forget.py -k person_is_erased",),
    ),
    Sabotage(
        "a role that may not delete works on (people)",
        (
            (
                "runtime/retention.py",
                "            if not lacks_a_right(error):\n                raise",
                "            if lacks_a_right(error):\n                raise",
            ),
        ),
        ("tests/integration/test_forget.py -k may_not_delete",),
    ),
    Sabotage(
        "a spreadsheet computes nothing of a list (people)",
        (("inputs/text.py", '_FORMULA = ("=", "+", "-", "@",', '_FORMULA = ("=", "+", "-",'),),
        ("tests/unit/test_text.py",),
    ),
    Sabotage(
        "a late answer beside the next claim's leaves no document (people)",
        (("ledger/results.py", "(r.claim.id, r.claim.lease.token) in applied)", "r.claim.id in dict(applied))"),),
        ("tests/integration/test_documents.py -k late_answer_leaves",),
    ),
    Sabotage(
        "a second answer to any of the last requests is known (P2)",
        (("trackstar/connection.py", "deque(maxlen=REMEMBERED_ANSWERS)", "deque(maxlen=1)"),),
        ("tests/integration/test_odd_answers.py -k second_answer_with",),
    ),
    Sabotage(
        "what is pruned is read by its age (people)",
        (
            (
                "ledger/retention.py",
                "return sa.select(now_plus(sa.literal(-seconds, sa.Float()))).scalar_subquery()",
                "return now_plus(sa.literal(-seconds, sa.Float()))",
            ),
        ),
        ("tests/integration/test_plans.py -k pruned_is_read",),
    ),
    Sabotage(
        "where a stretch of a list ends is read from the index (people)",
        (("ledger/filters.py", "        sa.select(c.received_at)\n", "        sa.select(c.received_at, c.id)\n"),),
        ("tests/integration/test_plans.py -k stretch_ends",),
    ),
    Sabotage(
        "what was sent of an order is told with its proof (people)",
        (("cli/card.py", "[not cancelled]}", "[cancelled]}"),),
        ("tests/unit/test_card.py",),
    ),
    Sabotage(
        "an index is built beside the work (people)",
        (("ledger/index_builds.py", "postgresql_concurrently=True,", "postgresql_concurrently=False,"),),
        ("tests/integration/test_migrations_beside_work.py -k rows_are",),
    ),
    Sabotage(
        "an index that was cut off is built again (people)",
        (("ledger/index_builds.py", "if not valid.get(name)}", "if name not in valid}"),),
        ("tests/integration/test_migrations_beside_work.py -k cut_off",),
    ),
    Sabotage(
        "a migration stands in nobody's way (people)",
        (("ledger/index_builds.py", '"lock_timeout": "2s"', '"lock_timeout": "60s"'),),
        ("tests/integration/test_migrations_beside_work.py -k long_trans",),
    ),
    Sabotage(
        "Celery's tools reach Redis with its password (seen)",
        (("broker/transport.py", "return RedisPool(self, limit)", "return ConnectionPool(self, limit)"),),
        ("tests/e2e/test_celery_tools.py",),
    ),
    Sabotage(
        "a retry is sent once more, as in Celery (seen)",
        (("broker/flower.py", "            if transition.attempts:", "            if False:"),),
        ("tests/e2e/test_celery_tools.py",),
    ),
    Sabotage(
        "what waits for its turn is sent when it came (seen)",
        (("broker/flower.py", "timestamp=claim.state.received_at.timestamp()", "timestamp=time.time()"),),
        ("tests/e2e/test_celery_tools.py",),
    ),
    Sabotage(
        "Celery's tools answer what is true here (seen)",
        (("broker/remote_control.py", "if name not in UNTOLD}", "}"),),
        ("tests/e2e/test_celery_tools.py",),
    ),
    Sabotage(
        "Flower's list says why a retry waits (seen)",
        (("broker/flower.py", '"task-retried", record_id, result=reason,', '"task-retried", record_id,'),),
        ("tests/e2e/test_flower_browser.py",),
    ),
    Sabotage(
        "Flower shows no part of a password (seen)",
        (("streams.py", 'return "REDIS_URL"', "return str(self._known)"),),
        ("tests/e2e/test_flower_browser.py",),
    ),
    Sabotage(
        "what expires unsent has its order in Flower (seen)",
        (("runtime/supervisor.py", ", order=(row.connection_id, row.order_id))", ")"),),
        ("tests/e2e/test_flower_browser.py",),
    ),
    Sabotage(
        "progress is no part of what a command prints (seen)",
        (("cli/progress.py", "console or SafeConsole(stderr=True)", "console or SafeConsole()"),),
        ("tests/integration/test_progress.py",),
    ),
    Sabotage(
        "a label has few words (seen)",
        (
            (
                "telemetry/metrics.py",
                "return word if len(word) <= _MAX_WORD and _WORD.fullmatch(word) else OTHER",
                "return word",
            ),
        ),
        ("tests/unit/test_metrics.py",),
    ),
    Sabotage(
        "the gauges read what is live and not what was (seen)",
        (("ledger/gauges.py", ".where(UNSETTLED)", ".where(c.ended_at.is_not(None))"),),
        ("tests/integration/test_plans.py -k gauges",),
    ),
    Sabotage(
        "an outcome is counted (seen)",
        (("runtime/supervisor.py", "        count_recorded(self._metrics, results, summary)\n", ""),),
        ("tests/e2e/test_metrics.py",),
    ),
    Sabotage(
        "what is told of a cancellation has its trace (seen)",
        (
            (
                "cancellation/request.py",
                'return {**names, "traceparent": record.traceparent} if record.traceparent else names',
                "return names",
            ),
        ),
        ("tests/integration/test_trace.py",),
    ),
    Sabotage(
        "Trackstar is told no trace (seen)",
        (
            (
                "trackstar/client.py",
                '"Idempotency-Key": idempotency_key',
                '"traceparent": idempotency_key, "Idempotency-Key": idempotency_key',
            ),
        ),
        ("tests/e2e/test_trace.py",),
    ),
    Sabotage(
        "a flood of one kind is one event a minute (seen)",
        (("telemetry/sentry_limit.py", "if connection_id in sent or", "if"),),
        ("tests/integration/test_sentry.py",),
    ),
    Sabotage(
        "no secret is among the settings that doctor shows (seen)",
        (
            (
                "cli/doctor/program.py",
                'return "set" if value.get_secret_value() else "not set"',
                "return value.get_secret_value()",
            ),
        ),
        ("tests/unit/test_doctor.py",),
    ),
    Sabotage(
        "a refund is told once per order, for what its row says was told (money)",
        (
            (
                "ledger/refunds.py",
                "for word in row.told.split() if row.proofs > 1)",
                "for word in row.told.split() if row.proofs < 1)",
            ),
        ),
        ("tests/integration/test_refunds.py",),
    ),
    Sabotage(
        "a refund is told under a row that only one transaction has (money)",
        (
            (
                "ledger/refunds.py",
                "    return new.on_conflict_do_update(index_elements=[r.connection_id, r.order_id], set_=again)"
                ".returning(*r)\n",
                "    return new.on_conflict_do_nothing().returning(*r)\n",
            ),
            (
                "ledger/refunds.py",
                "    told = {order: list(_told_before(row)) for order, row in noted.items()}\n",
                "    told = {each.order: list(_told_before(noted[each.order])) if each.order in noted else [] "
                "for each in proven}\n",
            ),
            (
                "ledger/refunds.py",
                "if words != noted[order].told.split()})",
                "if order in noted and words != noted[order].told.split()})",
            ),
        ),
        ("tests/integration/test_refunds.py",),
    ),
    Sabotage(
        "no refund is refused while another cancellation of the order may cancel it (money)",
        (
            (
                "cancellation/order_proof.py",
                "if last is None and all_refused else []",
                "if last is None else []",
            ),
        ),
        ("tests/integration/test_refunds.py", "tests/unit/test_order_proof.py"),
    ),
    Sabotage(
        "a refund whose proof turns is recalled (money)",
        (
            (
                "cancellation/order_proof.py",
                "[RefundNews.RECALLED] if proof.contradicted else []",
                "[]",
            ),
        ),
        ("tests/integration/test_refunds.py", "tests/integration/test_state_machine.py"),
    ),
    Sabotage(
        "an event that commits late gets a later place, and is not passed over (the feed)",
        (
            (
                "ledger/feed.py",
                "select_told().where(e.place > after).order_by(e.place)",
                "select_told().where(e.id > after).order_by(e.id)",
            ),
            (
                "ledger/feed.py",
                "    return sorted(told_of(db, rows), key=lambda told: told.place or 0)\n",
                "    return [msgspec.structs.replace(told, place=told.number) for told in told_of(db, rows)]\n",
            ),
            ("ledger/feed.py", "import sqlalchemy as sa\n\nfrom", "import msgspec\nimport sqlalchemy as sa\n\nfrom"),
        ),
        ("tests/integration/test_feed.py -k late",),
    ),
    Sabotage(
        "a consumer's place is kept after it has done with an event, not before (the feed)",
        (
            (
                "ledger/feed_reader.py",
                "                        yield FeedEvent(told.event, str(told.place))\n"
                "                        waited.begin_again()\n"
                "                    done = told.place or done\n",
                "                        done = told.place or done\n"
                "                        yield FeedEvent(told.event, str(told.place))\n"
                "                        waited.begin_again()\n",
            ),
        ),
        ("tests/integration/test_feed.py -k dies",),
    ),
    Sabotage(
        "a reader outlives a database that is away (the feed)",
        (
            (
                "ledger/feed_reader.py",
                "if not passes(error) or waited.is_last(AWAY_SECONDS):",
                "if passes(error) or waited.is_last(AWAY_SECONDS):",
            ),
        ),
        ("tests/integration/test_feed.py -k outlives",),
    ),
    Sabotage(
        "what is erased is taken off the stream (P6)",
        (("ledger/redaction.py", "        frozenset(row.id for row in told),\n", "        frozenset(),\n"),),
        ("tests/integration/test_forget.py -k stream",),
    ),
    Sabotage(
        "an event is four kilobytes at most (the contract)",
        (("cancellation/event.py", "while len(text) > MAX_BYTES and", "while len(text) > 2 * MAX_BYTES and"),),
        ("tests/unit/test_event.py", "tests/integration/test_told.py"),
    ),
    Sabotage(
        "a signature is compared, and not only there (signed)",
        (
            (
                "cancellation/signature.py",
                "return any(hmac.compare_digest(mine.encode(), each) for mine in expected for each in given)",
                "return bool(expected and given)",
            ),
        ),
        ("tests/unit/test_signature.py",),
    ),
    Sabotage(
        "an entry of the stream is believed only where it is signed (signed)",
        (
            (
                "cancellation/stream_entry.py",
                "            _check(signer, entry, body)\n",
                "            pass\n",
            ),
        ),
        ("tests/unit/test_stream_entry.py",),
    ),
    Sabotage(
        "a worker with a secret signs what it publishes (signed)",
        (
            (
                "runtime/relay.py",
                "write_entry(number, event, self._signer, now)",
                "write_entry(number, event, None, now)",
            ),
        ),
        ("tests/e2e/test_signed_stream.py",),
    ),
    Sabotage(
        "events of one order come one after another (webhooks)",
        (
            (
                "ledger/deliveries.py",
                "return (d.due_at <= now) & ~before",
                "return d.due_at <= now",
            ),
        ),
        ("tests/integration/test_webhooks.py -k one_subject",),
    ),
    Sabotage(
        "an event that waits holds up those after it, and no other (webhooks)",
        (
            (
                "ledger/deliveries.py",
                "return (d.due_at <= now) & ~before",
                "return (d.due_at <= now) & before",
            ),
        ),
        ("tests/integration/test_webhooks.py -k standard_webhooks",),
    ),
    Sabotage(
        "what is set aside takes no room of what comes (webhooks)",
        (
            (
                "ledger/deliveries.py",
                ".where(d.endpoint_id == p.id, d.due_at.is_not(None))",
                ".where(d.endpoint_id == p.id)",
            ),
        ),
        ("tests/integration/test_webhooks.py -k takes_no_room",),
    ),
    Sabotage(
        "an endpoint is sent to by one worker at a time (webhooks)",
        (
            (
                "ledger/deliveries.py",
                "    sa.or_(p.lease_expires_at.is_(None), p.lease_expires_at <= db_now()),\n",
                "",
            ),
        ),
        ("tests/integration/test_webhooks.py -k two_workers",),
    ),
    Sabotage(
        "what is sent stays a row until its answer is noted (webhooks)",
        (
            (
                "runtime/webhook_turn.py",
                "        return self._chosen\n\n    def _is_open",
                "        delivery_notes.drop(self._db, due)\n        return self._chosen\n\n    def _is_open",
            ),
        ),
        ("tests/integration/test_webhooks.py -k killed_between",),
    ),
    Sabotage(
        "what was answered is noted, and not sent again (webhooks)",
        (
            (
                "runtime/webhook_turn.py",
                "        delivery_notes.note(self._db, notes)\n",
                "        pass\n",
            ),
        ),
        ("tests/integration/test_webhooks.py -k standard_webhooks",),
    ),
    Sabotage(
        "receivers that hang have half of the tries at most (webhooks)",
        (
            (
                "runtime/webhook_shares.py",
                "max(1, limits.concurrency // 2)",
                "limits.concurrency",
            ),
        ),
        ("tests/integration/test_webhooks.py -k hundred",),
    ),
    Sabotage(
        "a receiver that fails has one try at a time (webhooks)",
        (
            (
                "runtime/webhook_shares.py",
                "allowed = (MAX_AT_ONCE if quick else 1) - len(began)",
                "allowed = MAX_AT_ONCE - len(began)",
            ),
        ),
        (
            "tests/integration/test_webhooks.py -k hundred",
            "tests/unit/test_delivery.py",
        ),
    ),
    Sabotage(
        "a paused endpoint goes on from where it was (webhooks)",
        (
            (
                "ledger/endpoints.py",
                'values(state="active", **fresh)',
                'values(state="active", place=feed.end_of_feed(db), **fresh)',
            ),
        ),
        ("tests/integration/test_webhooks.py -k refuses_for_ever",),
    ),
    Sabotage(
        "a receiver that is gone is asked no more (webhooks)",
        (
            (
                "runtime/webhook_turn.py",
                "elif tried.status == GONE:",
                "elif tried.status == -GONE:",
            ),
        ),
        ("tests/integration/test_webhooks.py -k 410",),
    ),
    Sabotage(
        "a receiver is left alone as long as it asks (webhooks)",
        (
            (
                "cancellation/delivery.py",
                "if self.status in OVERLOADED else 0.0",
                "if self.status is None else 0.0",
            ),
        ),
        (
            "tests/unit/test_delivery.py",
            "tests/integration/test_webhooks.py -k retry_after",
        ),
    ),
    Sabotage(
        "for a day both secrets sign (webhooks)",
        (
            (
                "runtime/webhook_turn.py",
                "                keys.append(self._means.decrypt(lane.old_secret, of_endpoint(lane.id)))\n",
                "                pass\n",
            ),
        ),
        ("tests/integration/test_webhooks.py -k new_secret",),
    ),
    Sabotage(
        "this machine's own network is not asked (webhooks)",
        (
            (
                "inputs/receivers.py",
                "    return (allow_private and not public) or",
                "    return True or (allow_private and not public) or",
            ),
        ),
        (
            "tests/unit/test_delivery.py",
            "tests/integration/test_webhook_sender.py -k second_look",
        ),
    ),
    Sabotage(
        "the address that was checked is the one that is connected to (webhooks)",
        (
            (
                "webhooks/sender.py",
                "asyncio.open_connection(address, receiver.port",
                "asyncio.open_connection(receiver.host, receiver.port",
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k second_look",),
    ),
    Sabotage(
        "a receiver has its time, and no more (webhooks)",
        (
            (
                "webhooks/sender.py",
                "asyncio.timeout(network.seconds)",
                "asyncio.timeout(10.0)",
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k cut_off",),
    ),
    Sabotage(
        "a receiver has fifteen seconds (webhooks)",
        (
            (
                "webhooks/sender.py",
                "TRY_SECONDS = 15.0",
                "TRY_SECONDS = 60.0",
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k limits",),
    ),
    Sabotage(
        "a redirect is not followed, and not a yes (webhooks)",
        (
            (
                "cancellation/delivery.py",
                "200 <= self.status < 300",
                "200 <= self.status < 400",
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k redirect",),
    ),
    Sabotage(
        "of an endless answer a little is read (webhooks)",
        (
            (
                "webhooks/sender.py",
                'wanted = min(wanted, int(answer.headers.get(b"content-length", b"")))',
                'wanted = int(answer.headers.get(b"content-length", b""))',
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k 64",),
    ),
    Sabotage(
        "a certificate is verified (webhooks)",
        (
            (
                "webhooks/sender.py",
                "    if ca_bundle:\n        context.load",
                "    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n"
                "    if ca_bundle:\n        context.load",
            ),
        ),
        ("tests/integration/test_webhook_sender.py -k certificate",),
    ),
    Sabotage(
        "nobody ends a worker by a broadcast: what Celery would obey is refused",
        (("broker/remote_control.py", "told = Panel.data.keys() - ASKING", "told: set[str] = set()"),),
        ("tests/e2e/test_forged_messages.py -k true",),
    ),
    Sabotage(
        "nobody ends a worker by a broadcast: it listens only where it is asked to",
        (("broker/bootstep.py", "control = settings.celery_remote_control", "control = True"),),
        ("tests/e2e/test_forged_messages.py -k false",),
    ),
    Sabotage(
        "an odd id in a batch keeps no other from being attempted",
        (
            (
                "runtime/executor.py",
                "if isinstance(each, str) and each in self._reserved",
                "if each in self._reserved",
            ),
        ),
        ("tests/unit/test_executor.py -k odd_id",),
    ),
    Sabotage(
        "doctor names a right that a worker lacks",
        (("cli/doctor/redis_rights.py", '    ("XACK", INBOX, GROUP, "0-1"),\n', ""),),
        ("tests/e2e/test_redis_users.py -k names_each",),
    ),
    Sabotage(
        "doctor does nothing of what it only asks for",
        (("cli/doctor/redis_rights.py", "if not _begins(connection):", "if _begins(connection) is None:"),),
        ("tests/e2e/test_redis_users.py -k names_each",),
    ),
    Sabotage(
        "a right without which there is no connection is named",
        (("cli/doctor/redis.py", "remedy_of(error) or _unreached(settings)", "_unreached(settings)"),),
        ("tests/e2e/test_redis_users.py -k names_each",),
    ),
    Sabotage(
        "why a Redis with TLS is not trusted is said",
        (("inputs/faults.py", '    if kind == "ConnectionError":', '    if kind == "":'),),
        ("tests/e2e/test_redis_tls.py -k trusts_none",),
    ),
    Sabotage(
        "a migration that loses a deadlock with a worker tries again (P8)",
        (("ledger/migrations.py", 'LOCK_TAKEN = {"55P03", "40P01"}', 'LOCK_TAKEN = {"55P03"}'),),
        ("tests/integration/test_migrations_beside_work.py -k waits_for_who",),
    ),
    Sabotage(
        "a schema that a newer release has made is told as newer",
        (("ledger/migrations.py", "if found in known else Fit.NEWER", "if found in known else Fit.FITS"),),
        ("tests/integration/test_migration_scripts.py -k check_tells",),
    ),
    Sabotage(
        "the SQL of a migration builds an index anew that was half built",
        (("ledger/index_builds.py", "migration.execute(_DROP_HALF_BUILT.format(name=name))", "pass"),),
        ("tests/integration/test_migration_scripts.py -k half_built",),
    ),
    Sabotage(
        "the SQL of a migration is refused by a schema from which it was not written",
        (("ledger/migration_scripts.py", "guard = _FITS_ON_SQLITE.format(since=since) if since else", "guard ="),),
        ("tests/integration/test_migration_scripts.py -k for_another_revision",),
    ),
    Sabotage(
        "the SQL of a migration does not run beside a migration",
        (("ledger/migration_scripts.py", "IF NOT pg_try_advisory_lock(", "IF NOT pg_try_advisory_lock(1 + "),),
        ("tests/integration/test_migration_scripts.py -k beside_a_migration",),
    ),
    Sabotage(
        "who reads the feed on a replica tries to write nothing",
        (
            (
                "ledger/feed_reader.py",
                "feed.without_place(db, until) or takes_no_writes(db)",
                "feed.without_place(db, until)",
            ),
        ),
        ("tests/integration/test_replica.py -k feed",),
    ),
    Sabotage(
        "a consumer whose place a replica could not keep is refused",
        (("ledger/feed_reader.py", "            self._refuse_consumer_of_replica()\n", ""),),
        ("tests/integration/test_replica.py -k consumer",),
    ),
    Sabotage(
        "what Celery puts back as a worker ends is on no list for ever",
        (("broker/transport.py", "            pipe.expire(queue, QUEUE_KEPT_SECONDS)", "            pass"),),
        ("tests/integration/test_worker_queue.py -k put_back",),
    ),
    Sabotage(
        "a token that was moved to another row is not read there (P6)",
        (
            (
                "ledger/vault.py",
                """        return f"{self.owner} {self.id}".encode()  # no kind holds a blank""",
                """        return self.owner.encode()""",
            ),
        ),
        ("tests/integration/test_bound_tokens.py -k exchanged",),
    ),
    Sabotage(
        "a secret of an endpoint is not read in the place of a token (P6)",
        (
            (
                "ledger/vault.py",
                """        return f"{self.owner} {self.id}".encode()  # no kind holds a blank""",
                """        return self.id.encode()""",
            ),
        ),
        ("tests/unit/test_vault.py -k same_id",),
    ),
    Sabotage(
        "an attempt reads a token only for its own connection (P6)",
        (
            (
                "runtime/attempt.py",
                "        place = of_connection(claim.connection_id)\n",
                "        place = of_connection('rich')\n",
            ),
        ),
        ("tests/e2e/test_bound_tokens.py -k moved",),
    ),
    Sabotage(
        "nothing is bound while a worker of the release before may have to read it",
        (("ledger/binding.py", "_BINDS = sa.select(_ANY_BOUND | ~_ANY)", "_BINDS = sa.select(sa.true())"),),
        ("tests/integration/test_bound_tokens.py -k release_before",),
    ),
    Sabotage(
        "after a rekey whatever is written is bound (P6)",
        (("ledger/binding.py", "_BINDS = sa.select(_ANY_BOUND | ~_ANY)", "_BINDS = sa.select(~_ANY)"),),
        ("tests/integration/test_bound_tokens.py -k from_then_on",),
    ),
    Sabotage(
        "a rekey locks no worker out that reads no bound token",
        (("cli/rekey.py", "workers_without(redis, BOUND_FORM) if bound else []", "[]"),),
        ("tests/e2e/test_bound_tokens.py -k refuses_beside",),
    ),
    Sabotage(
        "whoever lacks a right is told role, right and file",
        (("ledger/problems.py", "    if lacks_a_right(error):\n        return _lacking(error)\n", ""),),
        ("tests/integration/test_roles.py -k is_refused_names",),
    ),
    Sabotage(
        "the doctor asks for each right that the roles are granted",
        (("ledger/rights.py", '"audit": "INSERT USAGE",', '"audit": "USAGE",'),),
        ("tests/integration/test_roles.py -k asks_for",),
    ),
    Sabotage(
        "the doctor says where others may open a ledger that is a file",
        (("cli/doctor/ledger.py", "if mode & 0o077}", "if mode & 0o7000}"),),
        ("tests/integration/test_roles.py -k sqlite",),
    ),
    Sabotage(
        "nobody removes an act from the audit",
        (
            (
                "../ops/postgres/roles.sql",
                "audit_only_grows BEFORE UPDATE OR DELETE ON",
                "audit_only_grows BEFORE UPDATE ON",
            ),
        ),
        ("tests/integration/test_roles.py -k nobody_changes",),
    ),
    Sabotage(
        "whoever reads reports reads no token",
        (("../ops/postgres/roles.sql", "'- access_token owner'", "'- owner'"),),
        ("tests/integration/test_roles.py -k no_token",),
    ),
    Sabotage(
        "a worker changes nothing of what was asked for",
        (("../ops/postgres/roles.sql", "'- id connection_id order_id idempotency_key priority", "'- priority"),),
        ("tests/integration/test_roles.py -k people_decide",),
    ),
    Sabotage(
        "a producer brings only jobs of its own connections (P5)",
        (
            (
                "cancellation/producer.py",
                "request.connection_id not in producer.connections:",
                "request.connection_id == '':",
            ),
        ),
        ("tests/integration/test_producers.py -k may_not",),
    ),
    Sabotage(
        "a producer is urgent only with the right to it (P5)",
        (("cancellation/producer.py", 'if request.priority == "urgent" and not producer.urgent:', "if False:"),),
        ("tests/integration/test_producers.py -k may_not",),
    ),
    Sabotage(
        "nothing is refused by a right that has changed (P1)",
        (
            (
                "runtime/inboxes.py",
                "        if any(found):\n            self._read()\n",
                "        if any(found):\n",
            ),
        ),
        ("tests/integration/test_producers.py -k 'changes or stranger'",),
    ),
    Sabotage(
        "an inbox of nobody is emptied into dead letters (P1)",
        (("runtime/inboxes.py", "sorted(unknown)[:MAX_STRANGE]", "sorted(unknown)[:0]"),),
        ("tests/integration/test_producers.py -k nobody",),
    ),
    Sabotage(
        "the stream says whose a cancellation is (P5)",
        (("ledger/transitions.py", '"idempotency_key": key, "producer": producer}', '"idempotency_key": key}'),),
        ("tests/integration/test_producers.py -k says_whose",),
    ),
    Sabotage(
        "a flood takes no more than its part of a batch (P5)",
        (("runtime/inbox_script.py", "math.max(1, math.floor(most / inboxes))", "most"),),
        ("tests/integration/test_producers.py -k takes_its_part",),
    ),
    Sabotage(
        "a producer's rate is kept by all workers together (P5)",
        (("runtime/inbox_script.py", "math.min(this.free + this.read * this.step, this.last)", "this.free"),),
        ("tests/integration/test_producers.py -k rate_is_kept",),
    ),
    Sabotage(
        "an inbox that Redis refuses stops no other (P8)",
        (
            (
                "runtime/inbox_script.py",
                "local good, problem = pcall(take, this)",
                "local good, problem = true, take(this)",
            ),
        ),
        ("tests/integration/test_producers.py -k another_type_stops",),
    ),
    Sabotage(
        "an inbox of a producer whose ids are ahead is read to its end (P1)",
        (("runtime/intake.py", "self._inboxes.to_read(self._stream_ids.aside)", "self._inboxes.to_read(())"),),
        ("tests/integration/test_producers.py -k ids_are_ahead",),
    ),
    Sabotage(
        "a dead letter is sent again under the rights of its producer (P5)",
        (("cli/dead_letters.py", "client(producer=_producer_of(letter))", "client()"),),
        ("tests/integration/test_producers_commands.py -k sent_again",),
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
