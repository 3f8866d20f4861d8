"""What the reasons of requests and of outcomes mean, in a sentence for a person. Knows words; decides nothing."""

from __future__ import annotations

from http.client import responses

# Of everything that a request or an outcome may have for a reason, but for `http_<status>`.
IN_WORDS = {
    "accepted": "the warehouse accepted the cancel",
    "body_too_large": "the answer was larger than what is read",
    "connect_failed": "Trackstar could not be reached; nothing was sent",
    "connect_timeout": "Trackstar did not take the connection in time; nothing was sent",
    "connection_lost": "the connection broke before the answer was there",
    "cut_body": "the answer ended before its end",
    "error_in_answer": "the answer told an error instead of an order",
    "horizon_passed": "it waited longer than its key may be used",
    "key_reused": "Trackstar says that this idempotency key belongs to another request",
    "no_access_token": "the connection has no access token that can be read",
    "not_enabled": "Trackstar says that cancelling is not enabled for this connection",
    "not_json": "the answer could not be read",
    "not_supported": "this warehouse system knows no cancel",
    "order_not_found": "Trackstar does not know the order",
    "order_not_found_yet": "Trackstar does not know the order yet: it may be younger than Trackstar's copy",
    "proxy_failed": "the proxy could not be used; nothing was sent",
    "rate_limited": "Trackstar asks to go slower",
    "read_cancelled": "Trackstar's copy shows the order cancelled",
    "read_open": "Trackstar's copy shows the order open",
    "read_paced": "the read waits for its turn",
    "read_shipped": "Trackstar's copy shows that goods have left",
    "read_timeout": "no answer in time",
    "redirected": "the answer was a redirect, which is not followed",
    "refused": "the warehouse refused the cancel",
    "refused_by_warehouse": "the warehouse refused the cancel",
    "send_by_passed": "its send_by passed",
    "still_running": "an earlier request with the same key is still under way",
    "tls_failed": "Trackstar's certificate is not trusted; nothing was sent",
    "unauthorized": "Trackstar does not take our credentials",
    "unexpected_body": "the answer was in an unknown form",
    "unexpected_list": "the answer was a list that does not show this order",
    "validation_failed": "Trackstar says that the request is not valid",
    "warehouse_credentials": "the warehouse does not take the credentials of this connection",
    "withdrawn": "it was taken back",
    "worker_lost": "the worker ended before the answer was recorded",
    "wrong_order_in_answer": "the answer was about another order",
}


def in_words(reason: str) -> str:
    """Say what a reason means; a reason that is not known is returned as it is."""
    if reason in IN_WORDS:
        return IN_WORDS[reason]
    status = reason.removeprefix("http_")
    if status == reason or not status.isdecimal():
        return reason
    phrase = responses.get(int(status))
    return f"the answer was HTTP {status}" + (f" ({phrase})" if phrase else "")
