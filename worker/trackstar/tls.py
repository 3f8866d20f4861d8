"""TLS to Trackstar: whom it trusts, and why it did not. Knows no connection."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import certifi
from urllib3.util.ssl_ import create_urllib3_context

if TYPE_CHECKING:
    from collections.abc import Iterator


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Trust the certificates in this file alone, or the public ones; raises OSError where it cannot be read."""
    context = create_urllib3_context()
    context.load_verify_locations(cafile=ca_bundle or certifi.where())
    return context


def certificate_problem(error: BaseException | None) -> str | None:
    """Return why a server's certificate was not trusted, in OpenSSL's words; None where that is not the trouble."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
