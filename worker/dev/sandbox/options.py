"""What a world, a connection and an order can be told, by name. Knows no meaning of it beyond a sentence each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

CrawlState = Literal["enabled", "disabled", "stuck", "error"]


class CrawlOptions(TypedDict, total=False):
    """How Trackstar renews its copy. The world's are what a new connection begins with.

    `sync_seconds` from the begin of one crawl to the next (0: the copy is always fresh); `crawl_length` seconds;
    `crawl_state`: none begins (disabled), one begins and never ends (stuck), each ends and brings nothing (error).
    `touches_updates`: whether the warehouse sets its update time when an order changes; what it does not touch no
    crawl brings. `sync_schedules`: True as documented, False without the field, anything else is shown as it is.
    `refuse_sync`: the status that answers a forced crawl, for example 404 or 422.
    """

    sync_seconds: float
    crawl_length: float
    crawl_state: CrawlState
    touches_updates: bool
    sync_schedules: Any
    refuse_sync: int | None


class WorldOptions(CrawlOptions, total=False):
    """`connections_listed=False`: `GET /connections` is no endpoint. `connections_per_page`: of that list.

    `clock_skew`: seconds by which Trackstar's clock (`Date`, instants of crawls) is ahead of the world's.
    """

    clock: Callable[[], float] | None
    writes_per_second: int | None
    reads_per_second: int | None
    unknown_orders: Literal["404", "open"]
    idempotency: bool
    connections_as_list: bool
    connections_listed: bool
    connections_per_page: int
    clock_skew: float
    date_header: bool


class ConnectionOptions(CrawlOptions, total=False):
    """`fault` is one step that answers every request of the connection until it is set to None.

    `trackstar_id`: Trackstar's own name for it, where that is another. `schedule` lies over the schedule of orders,
    for example {"sync_status": "first_sync_in_progress"}. `crawl_offset`: seconds by which its crawls begin later
    than the world's.
    """

    integration_name: str
    available_actions: Sequence[str]
    errors: Sequence[Any]
    writes_per_second: int | None
    reads_per_second: int | None
    fault: str | None
    trackstar_id: str
    schedule: Mapping[str, Any]
    crawl_offset: float


class OrderOptions(TypedDict, total=False):
    """`document` lies over the sample order; `synced=False` keeps it out of Trackstar's copy until a crawl."""

    status: str
    script: Sequence[str]
    reads: Sequence[str]
    document: Mapping[str, Any]
    synced: bool
