"""Where webhooks may go: the address that a person states, and the one that its name turns out to be. Pure.

Whoever may state an address could make this machine ask its own network: so only public addresses are asked, and the
one that is checked is the one that is connected to.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from worker.inputs.links import read_link

MAX_URL_LENGTH = 2000
_NAT64 = IPv6Network("64:ff9b::/96")
# Networks that carry an IPv4 address within theirs, or that nobody uses any more.
_NEVER_4 = [  # special by IANA; some releases of Python call parts of them global
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
]
_NEVER = [
    IPv6Network(each)
    for each in (
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
]
_OF_A_CLOUD = {IPv4Address("168.63.129.16")}  # looks public, and is the host of a virtual machine


class Receiver(NamedTuple):
    """Whom to ask, and for what."""

    scheme: str
    host: str
    port: int
    target: str  # path and query
    authority: str  # as the header `Host` has it


def read_receiver(url: str, *, allow_private: bool) -> Receiver:
    """Read the address of an endpoint: https, without a user; http only where private addresses are allowed.

    Raises ValueError with a sentence that does not repeat it.
    """
    scheme = url.partition("://")[0]
    link = "https" + url.removeprefix("http") if scheme == "http" and allow_private else url
    if len(url) > MAX_URL_LENGTH or read_link(link) is None or "#" in url:
        raise ValueError(
            f"An endpoint is https://HOST/PATH in ASCII of at most {MAX_URL_LENGTH} characters, without a user, a "
            "password and a #."
        )
    parts = urlsplit(url)
    if parts.port == 0:
        raise ValueError("An endpoint's port is a number from 1 to 65535.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = parts.port or (443 if scheme == "https" else 80)
    return Receiver(scheme, (parts.hostname or "").rstrip("."), port, target, parts.netloc)


def origin_of(url: str) -> str:
    """Return scheme, host and port: what stands behind them may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def may_be_asked(receiver: Receiver, address: str, *, allow_private: bool) -> bool:
    """Whether a resolved address may be connected to. Without TLS no public one is: everybody would read along."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    public = _is_public(found)
    return (allow_private and not public) or (public and receiver.scheme == "https")


def _is_public(found: IPv4Address | IPv6Address) -> bool:
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return _is_public(found.ipv4_mapped)
        if found in _NAT64:  # the way of a network of IPv6 alone to the rest
            return _is_public(IPv4Address(int(found) & 0xFFFFFFFF))
        if any(found in network for network in _NEVER):
            return False
    elif any(found in network for network in _NEVER_4):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found in _OF_A_CLOUD)
