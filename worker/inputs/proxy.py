"""The address of a proxy: its form. Pure; knows no request."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_proxy_url(text: str) -> bool:
    """Whether this is http(s)://[user:password@]host[:port] and nothing more."""
    try:
        url = urlsplit(text)
        return (
            url.scheme in {"http", "https"}
            and bool(url.hostname)
            and url.port != 0
            and text.isascii()
            and text.isprintable()
            and " " not in text
            and not (url.path.strip("/") or url.query or url.fragment)
        )
    except ValueError:  # of a port, or of brackets
        return False
