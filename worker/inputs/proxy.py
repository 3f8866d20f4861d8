"""The address of a proxy: its form, and the secret in it. Pure; knows no request."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


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
            and not (url.path.strip("/") or url.query or url.fragment)
        )
    except ValueError:  # of a port, or of brackets
        return False


def password_of(text: str) -> str:
    """Return the password in an address, as it would be read; empty where there is none."""
    return unquote(urlsplit(text).password or "")
