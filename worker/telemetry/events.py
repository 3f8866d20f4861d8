"""Every log event, alert and stream event of a worker, with its fields: a contract for whoever watches or parses them.

Data only. A test compares it with what the code says. No field ever holds a token, a header, a document of an order or
a text from outside.
"""

from __future__ import annotations

import msgspec

LOOPS = (
    "intake",
    "celery_inbox",
    "dispatcher",
    "housekeeper",
    "recorder",
    "relay",
    "outages",
    "reporter",
    "flower",
    "known_keys",
    "backlog",
    "freshness",
    "hints",
    "gauges",
    "webhooks",
)  # the threads of a worker, as their events are named


class Event(msgspec.Struct, frozen=True):
    """What one event says. `level` is of the log line; an alert goes to Sentry too, a bug with its traceback."""

    level: str  # info | warning | error | alert | bug; stream for an entry of `cancellations:events`
    fields: tuple[str, ...]
    meaning: str
    optional: tuple[str, ...] = ()  # fields that are there only where they say something


def _event(level: str, fields: str, meaning: str, optional: str = "") -> Event:
    of_one = ["traceparent"] if {"id", "order_id"} <= set(fields.split()) else []
    return Event(level, tuple(fields.split()), meaning, (*of_one, *optional.split()))


_ORDER = "id connection_id order_id"

LOG_EVENTS = {
    "worker.started": _event("info", "owner host concurrency", "All threads of a worker run."),
    "worker.stopped": _event("info", "owner", "A worker has ended in order."),
    "worker.answers_not_recorded": _event("warning", "", "A worker ended while the ledger was away."),
    "ledger.schema_unfit": _event("warning", "problem", "A worker that came before its tables waits for them."),
    "health.listening": _event("info", "port", "Where /livez, /readyz and /metrics are answered."),
    "consumer.restarted": _event("error", "error", "Celery's consumer met an error that it does not expect."),
    # The reporter needs no other part; and whatever Flower's thread meets, only a page for people misses something.
    **{f"{loop}.unavailable": _event("warning", "error", "A part is away.") for loop in LOOPS if loop != "reporter"},
    **{f"{loop}.recovered": _event("info", "", "It answers again.") for loop in LOOPS if loop != "reporter"},
    **{
        f"{loop}.crashed": _event("bug", "", "A bug met a thread, which goes on.")
        for loop in LOOPS
        if loop != "flower"
    },
    "housekeeper.start_failed": _event("warning", "error", "TRACKSTAR_ACCESS_TOKEN is not kept; tried again."),
    "housekeeper.start_crashed": _event("bug", "", "TRACKSTAR_ACCESS_TOKEN is not kept; all others go on."),
    "pace.redis_away": _event("warning", "error", "A request is sent without knowing the pace of its connection."),
    "pace.reset": _event("warning", "connection_id key", "Its key in Redis held what no worker writes."),
    "pace.limit_ignored": _event("warning", "connection_id kind problem", "A limit that the server told is no limit."),
    "tally.reset": _event("warning", "connection_id key", "A count in Redis held what no worker writes."),
    "cancellation.requested": _event("info", _ORDER, "A job is in the ledger."),
    "cancellation.attempted": _event(
        "info",
        f"{_ORDER} kind attempt http_status origin reason duration_ms request_id status verdict run_at applied",
        "One request to Trackstar, and what followed from it.",
    ),
    "cancellation.expired": _event("info", f"{_ORDER} verdict", "Its send_by passed before it could be sent."),
    "cancellation.started_too_late": _event(
        "warning", f"{_ORDER} seconds", "A claim was given back: too old to be sent."
    ),
    "cancellation.rescued": _event("warning", _ORDER, "The claim of a lost worker was taken over."),
    "cancellation.wont_make_it": _event("warning", "count", "Backlogs are longer than the time to a send_by."),
    "cancellation.attempt_failed": _event(
        "bug", "connection_id ids", "A bug in an attempt; the rescue takes it from there.", optional="traceparents"
    ),
    "cancellation.read_back_failed": _event(
        "bug", "connection_id ids", "A bug in a read-back; it is asked again.", optional="traceparents"
    ),
    "connection.probed": _event("info", _ORDER, "One job was sent to see whether a hold can end."),
    "endpoint.secret_unreadable": _event(
        "error", "endpoint_id problem", "CREDENTIAL_KEYS lacks its key: its webhooks wait."
    ),
    "webhooks.try_crashed": _event("bug", "", "A bug in a try of a webhook; it is tried again."),
    "connection.token_unreadable": _event(
        "error", "connection_id problem", "CREDENTIAL_KEYS lacks its key, or it was encrypted for another connection."
    ),
    "executor.threads_missing": _event("warning", "wanted started", "The system allows fewer threads than asked for."),
    "executor.crashed": _event("bug", "", "A bug met a request thread, which goes on."),
    "ledger.clock_stepped": _event("warning", "seconds", "The ledger's clock jumped: leases are given time."),
    "freshness.not_told": _event("warning", "http_status", "Trackstar does not say when it renews its copies."),
    "freshness.crawls_fail": _event("warning", "connection_id problem", "Trackstar does not renew its copy."),
    "freshness.crawls_again": _event("info", "connection_id", "It does again."),
    "freshness.crawl_forced": _event("info", "connection_id http_status", "A crawl was asked for."),
    "retention.pruned": _event(
        "info",
        "cancellations events documents refunds delivery_tries dead_letters",
        "So many were deleted after their time, at most once a minute.",
    ),
    "retention.not_permitted": _event("warning", "what", "The role may not delete these: what is old is kept."),
    "hints.ignored": _event("warning", "count", "Entries of the hints stream were no hints."),
    "log.dropped": _event("warning", "count", "Lines could not be written: the log was full, blocked or gone."),
    "dead_letter.kept": _event(
        "warning", "source reason count kept", "Messages could not be read; most of them are kept."
    ),
    "cancellation.already_ended": _event("info", "count", "Intents were stated again after their end."),
    "redis.refuses": _event("warning", "part error remedy", "Redis answers, and refuses what a part asks of it."),
    "stream.repaired": _event("error", "stream problem", "Ids of a stream, or its group, were ahead; repaired."),
    "dispatcher.given_back": _event("warning", "count", "Messages were lost; their claims are pending again."),
    "dispatcher.not_given_back": _event("warning", "error", "An ending worker left claims; their leases end."),
    "recorder.record_failed": _event(
        "error", f"{_ORDER} error", "The ledger refused a result; the rescue decides anew."
    ),
    "recorder.not_told": _event("bug", "", "A result is recorded, and telling of it failed."),
}

ALERTS = {
    "worker.unready": _event("alert", "problem", "This worker does not take what is due; in words of our own."),
    "worker.ready_again": _event("alert", "", "It does again."),
    "connection.held": _event("alert", "connection_id reason", "A connection is set aside."),
    "connection.resumed": _event("alert", "connection_id", "Its hold has ended."),
    "trackstar.held": _event("alert", "connections", "Nearly everything fails: all connections are held."),
    "trackstar.resumed": _event("alert", "", "Trackstar answers again."),
    "endpoint.failing": _event(
        "alert", "endpoint_id percent failures", "No webhook reaches an endpoint; this part of the limit is reached."
    ),
    "endpoint.paused": _event("alert", "endpoint_id failures", "The limit is reached: nothing is sent until resumed."),
    "endpoint.removed": _event("alert", "endpoint_id", "It answered 410, so it is removed."),
    "endpoint.event_set_aside": _event(
        "alert", "endpoint_id event_number reason", "An endpoint has refused one event to its last try."
    ),
    "cancellation.exhausted": _event("alert", f"{_ORDER} reason verdict", "No proof within the retry horizon."),
    "cancellation.contradicted": _event("alert", _ORDER, "Trackstar had said or shown a yes, and the goods left."),
    "cancellation.needs_person": _event("alert", f"{_ORDER} reason", "No crawl settles it: a person must."),
    "cancellation.key_reused": _event("alert", _ORDER, "A key went out for another request: our bug."),
    "cancellation.not_enabled": _event("alert", _ORDER, "Cancel is disabled for this connection."),
    "cancellation.redirected": _event("alert", _ORDER, "Trackstar redirects: a wrong base URL?"),
    "cancellation.tls_failed": _event("alert", _ORDER, "Trackstar's certificate is not trusted: a CA_BUNDLE missing?"),
}

_OUTCOME = f"{_ORDER} generation status verdict evidence safe_to_refund as_of known_by needs_person reason"

STREAM_EVENTS = {
    "cancellation.ended": _event("stream", f"{_OUTCOME} attempts", "A cancellation has ended."),
    "cancellation.verdict_raised": _event(
        "stream",
        _OUTCOME,
        "A read proved what was not known, or a person settled it: then `by` says who, and `note` why.",
        optional="by note",
    ),
    "cancellation.contradicted": _event("stream", _OUTCOME, "Accepted or cancelled, and the goods left."),
    "cancellation.needs_person": _event(
        "stream", _OUTCOME, "No crawl settles it: `needs_person` says why. Told once for each generation."
    ),
    "cancellation.known_by_moved": _event("stream", _OUTCOME, "It is known later than it was told."),
    "cancellation.replayed": _event("stream", _OUTCOME, "A person runs it again."),
    "cancellation.changed": _event(
        "stream", f"{_OUTCOME} priority send_by now", "A person changed it before it was sent."
    ),
    "cancellation.wont_make_it": _event(
        "stream", f"{_OUTCOME} send_by expected_at", "It is expected after its send_by."
    ),
    "refund.released": _event(
        "stream", _OUTCOME, "The order is proven cancelled: pay it back. Once per order.", optional="attempts by note"
    ),
    "refund.refused": _event(
        "stream",
        _OUTCOME,
        "All cancellations of the order have ended, and none cancelled it. Once per order.",
        optional="attempts by note",
    ),
    "refund.recalled": _event(
        "stream", f"{_OUTCOME} recalls", "What was told of its refund is not so.", optional="attempts by note"
    ),
    "connection.held": _event("stream", "connection_id reason", "A connection is set aside."),
    "connection.resumed": _event("stream", "connection_id", "Its hold has ended."),
    "connection.removed": _event("stream", "connection_id", "Its token is forgotten."),
    "trackstar.held": _event("stream", "connections", "All connections are held."),
    "trackstar.resumed": _event("stream", "connections", "They go on."),
    "cancellation.already_ended": _event(
        "stream", f"{_OUTCOME} attempts", "It was stated again after its end; nothing is sent."
    ),
    "stream.repaired": _event("stream", "stream problem", "Its ids, or its group, were ahead of Redis' clock."),
    "endpoint.failing": _event(
        "stream", "endpoint_id percent failures", "No webhook reaches it; this part of the limit is reached."
    ),
    "endpoint.paused": _event("stream", "endpoint_id percent failures", "The limit is reached: nothing is sent."),
    "endpoint.removed": _event("stream", "endpoint_id", "A person removed it, or it answered 410."),
    # These two are on a stream of their own, `cancellations:dead-letters`.
    "dead_letter.kept": _event(
        "stream",
        "dead_letter_id reason source count kept",
        "So many messages of one kind could not be read; the number is of the last one that is kept.",
    ),
    "dead_letter.requeued": _event("stream", "dead_letter_id", "A person sent it again."),
}
