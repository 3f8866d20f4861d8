"""One connection as the sandbox keeps it: its token, its budgets, its orders and their crawls. Knows no other one."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from worker.dev.sandbox.crawls import Crawls
from worker.dev.sandbox.keys import Keys
from worker.dev.sandbox.limits import Budget, Traffic
from worker.dev.sandbox.options import ConnectionOptions
from worker.dev.sandbox.script import Step, parse

if TYPE_CHECKING:
    from worker.dev.sandbox.orders import Order

ACTIONS = ("get_orders", "create_order", "cancel_order")


class Connection:
    def __init__(self, connection_id: str, access_token: str, now: Callable[[], float], start: float) -> None:
        self.id = self.trackstar_id = connection_id
        self.access_token = access_token
        self.writes = Budget(None)
        self.reads = Budget(None)
        self.integration_name = "sandbox"
        self.available_actions: tuple[str, ...] = ACTIONS
        self.errors: tuple[Any, ...] = ()
        self.fault: Step | None = None
        self.keys = Keys()
        self.orders: dict[str, Order] = {}
        self.start = start
        self.crawl_offset = 0.0
        self.crawls = Crawls(now, start)
        self.schedule: Mapping[str, Any] = {}
        self.sync_schedules: Any = True
        self.refuse_sync: int | None = None

    @property
    def traffic(self) -> Traffic:
        writes, reads = self.writes, self.reads
        return Traffic(writes.total, writes.refused, writes.peak, reads.total, reads.refused, reads.peak)

    def change(self, options: ConnectionOptions) -> None:
        """Take over what is given; a ValueError says what is wrong, and then nothing has changed."""
        fault = options.get("fault")
        step = None if fault is None else parse(fault)
        self._arrange_crawls(options)
        self.fault = step if "fault" in options else self.fault
        self.trackstar_id = options.get("trackstar_id", self.trackstar_id)
        self.integration_name = options.get("integration_name", self.integration_name)
        self.available_actions = tuple(options.get("available_actions", self.available_actions))
        self.errors = tuple(options.get("errors", self.errors))
        self.writes.limit = options.get("writes_per_second", self.writes.limit)
        self.reads.limit = options.get("reads_per_second", self.reads.limit)
        self.schedule = options.get("schedule", self.schedule)
        self.sync_schedules = options.get("sync_schedules", self.sync_schedules)
        self.refuse_sync = options.get("refuse_sync", self.refuse_sync)

    def _arrange_crawls(self, options: ConnectionOptions) -> None:
        crawls = self.crawls
        offset = options.get("crawl_offset", self.crawl_offset)
        crawls.arrange(
            options.get("sync_seconds", crawls.frequency),
            options.get("crawl_length", crawls.length),
            options.get("crawl_state", crawls.state),
            self.start + offset,
        )
        crawls.touches = options.get("touches_updates", crawls.touches)
        self.crawl_offset = offset
