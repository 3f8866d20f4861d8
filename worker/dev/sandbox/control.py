"""The endpoints under /_sandbox/: the world's own methods in JSON, for tests and for people trying things out."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from worker.dev.sandbox import replies
from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.options import ConnectionOptions, CrawlState, OrderOptions
from worker.dev.sandbox.orders import Order
from worker.dev.sandbox.replies import Reply
from worker.dev.sandbox.world import World

Input = TypeVar("Input")


class ConnectionInput(Struct, forbid_unknown_fields=True):
    id: str
    access_token: str | None = None
    integration_name: str | UnsetType = UNSET
    available_actions: list[str] | UnsetType = UNSET
    errors: list[Any] | UnsetType = UNSET
    writes_per_second: int | UnsetType | None = UNSET
    reads_per_second: int | UnsetType | None = UNSET
    fault: str | UnsetType | None = UNSET
    trackstar_id: str | UnsetType = UNSET
    sync_seconds: float | UnsetType = UNSET
    crawl_length: float | UnsetType = UNSET
    crawl_offset: float | UnsetType = UNSET
    crawl_state: CrawlState | UnsetType = UNSET
    touches_updates: bool | UnsetType = UNSET
    sync_schedules: Any = UNSET
    schedule: dict[str, Any] | UnsetType = UNSET
    refuse_sync: int | UnsetType | None = UNSET


class OrderName(Struct, forbid_unknown_fields=True):
    connection_id: str
    order_id: str


class OrderInput(OrderName):
    status: str | UnsetType = UNSET
    script: list[str] | UnsetType = UNSET
    reads: list[str] | UnsetType = UNSET
    document: dict[str, Any] | UnsetType = UNSET
    synced: bool | UnsetType = UNSET


class ShipInput(OrderName):
    status: str | None = "fulfilled"
    touches: bool | None = None


class CancelInput(OrderName):
    touches: bool | None = None


class EditInput(CancelInput):
    document: dict[str, Any] | None = None
    status: str | None = None


class SyncInput(Struct, forbid_unknown_fields=True):
    connection_id: str | None = None


def handle(world: World, method: str, rest: tuple[str, ...], query: dict[str, str], body: bytes) -> Reply:
    """Answer one control request; wrong input is a 400 with one sentence."""
    endpoint = ENDPOINTS.get((method, *rest))
    if endpoint is None:
        known = ", ".join(f"{verb} /{'/'.join(('_sandbox', *words))}" for verb, *words in ENDPOINTS)
        return replies.error(404, f"The control endpoints are {known}.", "sandbox")
    try:
        return replies.of(endpoint(world, query, body))
    except (msgspec.MsgspecError, ValueError, KeyError) as refusal:
        return replies.error(400, str(refusal.args[0]), "sandbox")


def _overview(world: World, _query: dict[str, str], _body: bytes) -> Any:
    counts = {"connections": len(world.connections()), "orders": len(world.orders())}
    return {**counts, "unauthorised": world.unauthorised}


def _connections(world: World, _query: dict[str, str], _body: bytes) -> Any:
    return [_connection_shape(connection) for connection in world.connections()]


def _connect(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _given(_decode(body, ConnectionInput))
    connection_id, token = wish.pop("id"), wish.pop("access_token")
    return _connection_shape(world.connect(connection_id, token, **cast("ConnectionOptions", wish)))


def _orders(world: World, query: dict[str, str], _body: bytes) -> Any:
    if "order_id" in query:
        return _order_shape(world.order(query.get("connection_id", ""), query["order_id"]))
    return [_order_shape(order) for order in world.orders(query.get("connection_id"))]


def _put_order(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _given(_decode(body, OrderInput))
    place = wish.pop("connection_id"), wish.pop("order_id")
    make = world.add_order if world.find(*place) is None else world.alter_order
    return _order_shape(make(*place, **cast("OrderOptions", wish)))


def _ship(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body, ShipInput)
    world.ship(wish.connection_id, wish.order_id, wish.status, touches=wish.touches)
    return _order_shape(world.order(wish.connection_id, wish.order_id))


def _cancel(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body, CancelInput)
    world.cancel_by_somebody(wish.connection_id, wish.order_id, touches=wish.touches)
    return _order_shape(world.order(wish.connection_id, wish.order_id))


def _edit(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body, EditInput)
    world.edit(wish.connection_id, wish.order_id, wish.document, status=wish.status, touches=wish.touches)
    return _order_shape(world.order(wish.connection_id, wish.order_id))


def _settle(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body, OrderName)
    world.settle(wish.connection_id, wish.order_id)
    return _order_shape(world.order(wish.connection_id, wish.order_id))


def _release(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body, OrderName)
    return {"released": world.release(wish.connection_id, wish.order_id)}


def _sync(world: World, _query: dict[str, str], body: bytes) -> Any:
    wish = _decode(body or b"{}", SyncInput)
    world.sync(wish.connection_id)
    return {"synced": len(world.orders(wish.connection_id))}


ENDPOINTS: dict[tuple[str, ...], Callable[[World, dict[str, str], bytes], Any]] = {
    ("GET",): _overview,
    ("GET", "connections"): _connections,
    ("POST", "connections"): _connect,
    ("GET", "orders"): _orders,
    ("POST", "orders"): _put_order,
    ("POST", "orders", "ship"): _ship,
    ("POST", "orders", "cancel"): _cancel,
    ("POST", "orders", "edit"): _edit,
    ("POST", "orders", "settle"): _settle,
    ("POST", "orders", "release"): _release,
    ("POST", "sync"): _sync,
}


def _decode(body: bytes, shape: type[Input]) -> Input:
    return msgspec.json.decode(body, type=shape)


def _given(wish: Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(wish).items() if value is not UNSET}


def _connection_shape(connection: Connection) -> dict[str, Any]:
    return {
        "id": connection.id,
        "access_token": connection.access_token,
        "integration_name": connection.integration_name,
        "available_actions": connection.available_actions,
        "errors": connection.errors,
        "writes_per_second": connection.writes.limit,
        "reads_per_second": connection.reads.limit,
        "fault": str(connection.fault) if connection.fault else None,
        "trackstar_id": connection.trackstar_id,
        "sync_seconds": connection.crawls.frequency,
        "crawl_length": connection.crawls.length,
        "crawl_state": connection.crawls.state,
        "touches_updates": connection.crawls.touches,
        "refuse_sync": connection.refuse_sync,
        "traffic": asdict(connection.traffic),
    }


def _order_shape(order: Order) -> dict[str, Any]:
    place = {"connection_id": order.connection_id, "order_id": order.order_id}
    scripts = {"script": [str(step) for step in order.script], "reads": [str(step) for step in order.reads]}
    return {**place, **scripts, "truth": asdict(order.truth)}
