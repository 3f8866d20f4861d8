"""What Trackstar tells of connections and their crawls to the API key alone. Knows no budget and no order."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from worker.dev.sandbox import replies
from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.replies import Reply
from worker.dev.sandbox.world import World

UNAUTHORISED = replies.error(401, "The API key or the access token is missing or not valid.")
ORDERS = "get_orders"
# Another function's schedule, because that of orders is not the first or only one.
INVENTORY = {
    "function_name": "get_inventory",
    "last_crawl_start": None,
    "last_crawl_end": None,
    "latest_sync": None,
    "sync_frequency": 86400,
    "in_progress": False,
    "sync_status": "disabled",
}


class Directory:
    def __init__(self, world: World) -> None:
        self.world = world

    def connection(self, api_key: str | None, name: str) -> Reply:
        """Tell of one connection, by Trackstar's id or by ours."""
        with self.world.changed:
            if api_key != self.world.api_key:
                return UNAUTHORISED
            found = self.world.connection_named(name)
            if found is None:
                return replies.error(404, "There is no such connection.")
            data = _told(found, self.world.clock_skew)
            return replies.of({"data": [data] if self.world.connections_as_list else data})

    def connections(self, api_key: str | None, page_token: str = "") -> Reply:
        """Tell of all connections, a page at a time."""
        with self.world.changed:
            world, first = self.world, int(page_token) if page_token.isdecimal() else 0
            world.connections_lists += 1
            if api_key != world.api_key:
                return UNAUTHORISED
            if not world.connections_listed:
                return replies.error(404, "There is no such endpoint.")
            everybody, end = world.connections(), first + world.connections_per_page
            page = [_told(each, world.clock_skew) for each in everybody[first:end]]
            return replies.of({"data": page, "next_token": str(end) if end < len(everybody) else None})

    def magic_link(self, api_key: str | None, body: bytes) -> Reply:
        """Make a link with which a connection's customer would enter the warehouse's credentials anew."""
        with self.world.changed:
            if api_key != self.world.api_key:
                return UNAUTHORISED
            try:
                name = json.loads(body)["connection_id"]
            except (ValueError, TypeError, LookupError):
                return replies.error(422, "What is wanted is a connection_id.")
            found = self.world.connection_named(name) if isinstance(name, str) else None
            if found is None:
                return replies.error(404, "There is no such connection.")
            return replies.of({"data": {"url": f"https://link.sandbox.invalid/{quote(found.trackstar_id, safe='')}"}})

    def generate(self, api_key: str | None) -> Reply:
        """Make the organisation's sandbox connection, or empty it; three open orders wait in it."""
        with self.world.changed:
            if api_key != self.world.api_key:
                return UNAUTHORISED
            made = self.world.connect("sandbox")
            self.world.remove_orders(made.id)
            for number in (1, 2, 3):
                self.world.add_order(made.id, f"sandbox-order-{number}")
            return replies.of({"access_token": made.access_token, "connection_id": made.id})


def force(connection: Connection, body: bytes) -> Reply:
    """Begin a crawl of orders now, unless one runs."""
    if connection.refuse_sync is not None:
        return replies.error(connection.refuse_sync, "There is no forced sync here.")
    try:
        functions = json.loads(body)["functions_to_sync"]
    except (ValueError, TypeError, LookupError):
        functions = None
    if functions != [ORDERS] or connection.crawls.state == "disabled":
        return replies.error(422, f"What can be synced is {ORDERS}, where its schedule is not disabled.")
    connection.crawls.force()
    return replies.of({"id": connection.trackstar_id, "syncing": True, "functions_to_sync": functions})


def _told(connection: Connection, skew: float) -> dict[str, Any]:
    told = {
        "id": connection.trackstar_id,
        "integration_name": connection.integration_name,
        "available_actions": connection.available_actions,
        "errors": connection.errors,
    }
    if connection.sync_schedules is False:
        return told
    if connection.sync_schedules is True:
        return told | {"sync_schedules": [INVENTORY, _schedule(connection, skew)]}
    return told | {"sync_schedules": connection.sync_schedules}


def _schedule(connection: Connection, skew: float) -> dict[str, Any]:
    crawls = connection.crawls
    crawls.catch_up()
    # A crawl that failed, or was given up, has begun and has no end.
    ended = _instant(crawls.completed.ends + skew)
    return {
        "function_name": ORDERS,
        "last_crawl_start": _instant(crawls.latest.began + skew),
        "last_crawl_end": ended,
        "latest_sync": ended,
        "sync_frequency": crawls.frequency,
        "in_progress": crawls.running is not None,
        "sync_status": _status(connection),
    } | dict(connection.schedule)


def _status(connection: Connection) -> str:
    crawls = connection.crawls
    if crawls.state == "disabled":
        return "disabled"
    if crawls.running is not None:
        return "sync_in_progress"
    return "error" if crawls.state == "error" or crawls.latest.fails else "enabled"


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
