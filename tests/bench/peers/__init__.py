"""The peers: the same job on other queues, each written as its own documentation would.

Every module has `put(cancellations)` (or `put_async`), which enqueues what it is given; the rest is what its workers
import. What a job does is `sync_body` or `async_body`, alike for all: claim and commit, `PUT`, then outcome, snapshot
and attempt and commit; then the queue acknowledges. None of them has a durable intake, a lease, a pace, or an outbox
of outcome events: what they do less than this worker is left in their favour.
"""
