"""Which request leads to which part of the contract. Knows paths and queries, and no answer."""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from worker.dev.sandbox import control, replies
from worker.dev.sandbox.contract import Caller, Contract
from worker.dev.sandbox.exchange import Exchange
from worker.dev.sandbox.replies import Reply

NO_ENDPOINT = replies.error(404, "There is no such endpoint.")


class Asked(NamedTuple):
    """A request as it came; `target` is the path with its query, still quoted."""

    method: str
    target: str
    caller: Caller
    key: str | None
    body: bytes


def route(contract: Contract, asked: Asked) -> Exchange | Reply:
    """Begin what is asked for, or answer it at once."""
    # The path is split before it is unquoted, so that a slash within an id stays within it.
    path, _, query = asked.target.partition("?")
    words = [unquote(word) for word in path.split("/")[1:]]
    fields = {name: ",".join(values) for name, values in parse_qs(query).items()}
    match (asked.method, *words):
        case ("PUT", "wms", "orders", order_id, "cancel") if order_id:
            return contract.cancel(asked.caller, order_id, asked.key, asked.body)
        case ("GET", "wms", "orders"):
            return _orders(contract, asked.caller, fields)
        case ("GET", "wms", "orders", order_id) if order_id:
            return contract.read(asked.caller, order_id)
        case ("POST", "connections", "sync"):
            return contract.force_crawl(asked.caller, asked.body)
        case (method, "_sandbox", *rest):
            return control.handle(contract.world, method, tuple(filter(None, rest)), fields, asked.body)
    if (asked.method, *words) == ("POST", "magic-links"):
        return contract.magic_link(asked.caller.api_key, asked.body)
    return _by_api_key(contract, asked.method, words, asked.caller.api_key, fields) or NO_ENDPOINT


def _orders(contract: Contract, caller: Caller, fields: dict[str, str]) -> Exchange:
    ids = [each for each in fields.get("ids[in]", "").split(",") if each]
    since, token = fields.get("updated_date[gte]", ""), fields.get("page_token", "")
    if ids or not (since or token):
        return contract.read_many(caller, ids)
    return contract.read_changed(caller, since, fields.get("limit", ""), token)


def _by_api_key(
    contract: Contract, method: str, words: list[str], api_key: str | None, fields: dict[str, str]
) -> Reply | None:
    match (method, *words):
        case ("GET", "connections"):
            return contract.connections(api_key, fields.get("page_token", ""))
        case ("GET", "connections", name):
            return contract.connection(api_key, name)
        case ("POST", "sandbox", "generate-sandbox", "wms"):
            return contract.generate(api_key)
    return None
