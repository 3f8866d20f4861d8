"""The answers of Trackstar as values, and as the bytes that go out. Knows nothing of orders' rules or sockets."""

import codecs
import gzip
import json
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from worker.dev.sandbox.orders import State
from worker.dev.sandbox.script import Step

Headers = tuple[tuple[str, str], ...]

# The order of the founding document; all of it is made up.
SAMPLE: dict[str, Any] = {
    "id": "",
    "warehouse_customer_id": "warehouse_customer_id",
    "warehouse_id": "warehouse_id",
    "created_date": "2022-01-01T00:00:00Z",
    "updated_date": "",
    "reference_id": "",
    "order_number": "",
    "status": "",
    "raw_status": "",
    "channel": "channel_id",
    "channel_object": {},
    "type": "d2c",
    "trading_partner": "Target",
    "shipping_method": "shipping_method_id",
    "is_third_party_freight": False,
    "third_party_freight_account_number": "123456",
    "first_party_freight_account_number": "123456",
    "invoice_currency_code": "USD",
    "total_price": 13.49,
    "total_tax": 1.5,
    "total_discount": 2.5,
    "total_shipping": 3.5,
    "ship_to_address": {
        "full_name": "John Doe",
        "company": "Company",
        "address1": "123 Main St",
        "address2": "Apt 2",
        "address3": "Floor 3",
        "city": "New York",
        "state": "NY",
        "postal_code": "10001",
        "country": "United States",
    },
    "line_items": [
        {
            "product_id": "product_id",
            "sku": "sku",
            "quantity": 1,
            "unit_price": 10.99,
            "is_picked": False,
            "discount_amount": 1.5,
        }
    ],
    "tags": ["tag_0"],
    "required_ship_date": "2021-01-01T12:00:00Z",
    "saturday_delivery": False,
    "signature_required": False,
    "international_duty_paid_by": "sender",
    "shipments": [],
    "external_system_url": "https://example.com/order/123",
    "trackstar_tags": ["tag1", "tag2", {"tag3": "value3"}],
}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: Headers = ()
    content_type: str = "application/json"

    def having(self, headers: Headers) -> "Reply":
        return replace(self, headers=self.headers + headers)

    def head(self, request_id: str, *more: str) -> bytes:
        """Everything up to the body."""
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}", f"X-Request-Id: {request_id}"]
        if self._has_body:
            lines += [f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, *more, "\r\n"]).encode("latin-1", "replace")

    def wire(self, request_id: str) -> bytes:
        return self.head(request_id) + (self.body if self._has_body else b"")

    @property
    def _has_body(self) -> bool:
        return self.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def document(order_id: str, state: State) -> dict[str, Any]:
    updated = datetime.fromtimestamp(state.updated, UTC).isoformat(timespec="milliseconds")
    moment = {
        "id": order_id,
        "reference_id": f"R-{order_id}",
        "order_number": f"#{order_id}",
        "updated_date": updated.replace("+00:00", "Z"),
        "status": state.status,
        "raw_status": state.status.capitalize(),
    }
    return SAMPLE | moment | dict(state.document)


def of(payload: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(payload, separators=(",", ":")).encode())


def cancelled(order_id: str, state: State, step: Step) -> Reply:
    """Build the 200 of a cancel; a `wrong_id` step makes it tell of another order."""
    wrong = step.target if step.answer == "wrong_id" else ""
    inner = another(order_id) if wrong in ("both", "data") else order_id
    outer = another(order_id) if wrong in ("both", "outer") else order_id
    return of({"data": document(inner, state), "id": outer, "unused_fields": []})


def another(order_id: str) -> str:
    return f"{order_id}-of-somebody-else"


def error(status: int, text: str, origin: str = "trackstar", retry_after: str = "") -> Reply:
    reply = of({"error": text, "origin": origin} if origin != "none" else {"error": text}, status)
    return reply.having((("retry-after", retry_after),)) if retry_after else reply


def scripted(step: Step) -> Reply | None:
    """Build what a step says by itself; None where the answer is the one that the contract gives."""
    match step.answer:
        case "status" if step.status < HTTPStatus.BAD_REQUEST:
            return of({"message": "As the script says."}, step.status)
        case "status":
            return error(step.status, "As the script says.", step.origin, step.retry_after)
        case "html":
            page = b"<html><head><title>Bad Gateway</title></head><body>It is not JSON.</body></html>"
            return Reply(step.status, page, content_type="text/html")
        case "empty" | "reset" | "close" | "hang":
            return Reply(step.status, b"")
        case "failing":
            return error(200, "As the script says.", step.origin)
        case "list":
            return of([], step.status)
        case "redirect":
            return of({}, step.status).having((("Location", step.target),))
    return None


def dressed(reply: Reply, step: Step) -> Reply:
    """Put an answer into the form that its step asks for."""
    match step.answer:
        case "huge":
            return padded(reply, step.size)
        case "bare":
            return replace(reply, status=step.status, body=b"")
        case "coded":
            encode, label = CODINGS[step.target]
            return replace(reply, body=encode(reply.body), headers=reply.headers + label)
        case "shown":
            return replace(reply, body=json.dumps(_renamed(json.loads(reply.body), FORMS[step.target])).encode())
    return reply


def _raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def _labelled(coding: str) -> Headers:
    return (("Content-Encoding", coding),)


CODINGS: dict[str, tuple[Callable[[bytes], bytes], Headers]] = {
    "gzip": (gzip.compress, _labelled("gzip")),
    "unlabelled_gzip": (gzip.compress, ()),
    "deflate": (zlib.compress, _labelled("deflate")),
    "raw_deflate": (_raw_deflate, _labelled("deflate")),
    "br": (lambda body: b"\x1b" + body[::-1], _labelled("br")),  # nobody here could read the real one either
    "mark": (lambda body: codecs.BOM_UTF8 + body, ()),
    "utf-16": (lambda body: body.decode().encode("utf-16"), ()),
}
FORMS: dict[str, Callable[[str], Any]] = {
    "number": int,
    "nfc": partial(unicodedata.normalize, "NFC"),
    "nfd": partial(unicodedata.normalize, "NFD"),
    "upper": str.upper,
}


def _renamed(payload: dict[str, Any], form: Callable[[str], Any]) -> dict[str, Any]:
    """Write the ids of an answer in another form, where it has any."""
    inner = payload.get("data")
    changed = {"data": inner | {"id": form(inner["id"])}} if isinstance(inner, dict) else {}
    return payload | changed | ({"id": form(payload["id"])} if "id" in payload else {})


def padded(reply: Reply, size: int) -> Reply:
    """Add one more field to the JSON object, so that it has `size` bytes (unless it is longer without)."""
    frame = reply.body[:-1] + b',"padding":"'
    return replace(reply, body=frame + b"x" * (size - len(frame) - 2) + b'"}')


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unnamed"
