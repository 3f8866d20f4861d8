"""What the script says of entries is read as it is meant, and what Redis refuses has a word and a remedy."""

from __future__ import annotations

import pytest
from redis import exceptions

from worker.inputs.entries import KEPT_BYTES, Entry, kept_of, read_entries
from worker.inputs.faults import remedy_of, word_of


@pytest.mark.parametrize(
    ("head", "raw", "expected"),
    [
        pytest.param(b"job", b"{}", Entry("1-0", "job", b"{}"), id="a job"),
        pytest.param(b"celery", b"{}", Entry("1-0", "celery", b"{}"), id="a message"),
        pytest.param(b"", b"a: b", Entry("1-0", "", b"a: b"), id="no field of ours"),
        pytest.param(b"job too_large 300000", b"[[", Entry("1-0", "job", b"[[", "too_large", 300_000), id="too long"),
        pytest.param(b" too_large 9", b"a", Entry("1-0", "", b"a", "too_large", 9), id="too long, no field of ours"),
    ],
)
def test_an_entry_is_read_with_the_field_that_counts_or_why_it_is_refused(
    head: bytes, raw: bytes, expected: Entry
) -> None:
    assert [expected] == read_entries([b"1-0", head, raw])


def test_a_message_that_is_not_kept_whole_says_so() -> None:
    assert (b"x" * KEPT_BYTES, "No. The first 4096 of its 5000 bytes are kept.") == kept_of(
        b"x" * 5000, "No.", whole=False
    )
    assert (b"x" * 5000, "No.") == kept_of(b"x" * 5000, "No.", whole=True)


SCRIPT = "script: 8c1f, on @user_script:11."
REFUSED: list[tuple[exceptions.RedisError, str, str]] = [
    (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM", "maxmemory"),
    (
        exceptions.ResponseError(f"OOM command not allowed when used memory > 'maxmemory'. {SCRIPT}"),
        "OOM",
        "maxmemory",
    ),
    (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots, but"), "MISCONF", "disk"),
    (exceptions.ResponseError(f"-MISCONF Errors writing to the AOF file {SCRIPT}"), "MISCONF", "disk"),
    (exceptions.ReadOnlyError("You can't write against a read only replica."), "READONLY", "primary"),
    (
        exceptions.NoPermissionError("User 'w' has no permissions to run the 'evalsha' command"),
        "NOPERM",
        "right to run EVALSHA",
    ),
    (exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong"), "WRONGTYPE", "rename or delete"),
    (exceptions.ResponseError("The stream has exhausted the last possible ID, unable"), "EXHAUSTED", "repairs"),
    (
        exceptions.NoPermissionError("User w has no permissions to run the 'client|setname' command"),
        "NOPERM",
        "+client|setname",
    ),
    (exceptions.NoPermissionError("No permissions to access a key"), "NOPERM", "ops/redis/users.acl"),
    (
        exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
        "WRONGPASS",
        "the user or the password",
    ),
    (exceptions.AuthenticationError("Authentication required."), "NOAUTH", "wants a password"),
    (
        exceptions.ResponseError("Command # 1 (XADD a {'Ada MISCONF'}) of pipeline caused error: OOM command not"),
        "OOM",
        "maxmemory",
    ),
]


CONNECTING = "Error 1 connecting to 127.0.0.1:6379. "
UNVERIFIED = f"{CONNECTING}[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
# As OpenSSL and redis-py put it.
NOT_TRUSTED = [
    (f"{UNVERIFIED}self-signed certificate in certificate chain", "TLS_UNTRUSTED", "ssl_ca_certs"),
    (f"{UNVERIFIED}certificate has expired", "TLS_UNTRUSTED", "not trusted"),
    (f"{UNVERIFIED}IP address mismatch, certificate is not valid for", "TLS_OTHER_NAME", "does not name the host"),
    (f"{UNVERIFIED}Hostname mismatch, certificate is not valid for", "TLS_OTHER_NAME", "does not name the host"),
    (f"{CONNECTING}[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert", "TLS_REFUSED", "ssl_certfile"),
    (f"{CONNECTING}[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", "TLS_REFUSED", "ssl_certfile"),
    ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert", "TLS_REFUSED", "ssl_certfile"),
]
REFUSED += [(exceptions.ConnectionError(text), word, remedy) for text, word, remedy in NOT_TRUSTED]


@pytest.mark.parametrize(("error", "word", "remedy"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_what_redis_refuses_is_named_with_its_remedy(error: exceptions.RedisError, word: str, remedy: str) -> None:
    assert word == word_of(error)
    assert remedy in (remedy_of(error) or "")


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.ConnectionError("Error 8 while writing to socket. EOF occurred in violation of protocol"),
        exceptions.TimeoutError("Timeout reading from socket"),
        ValueError("OOM"),
        exceptions.ResponseError("a word of a stranger"),
        exceptions.ResponseError("CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_what_is_no_refusal_is_named_by_its_kind_alone(error: Exception) -> None:
    assert (type(error).__name__, None) == (word_of(error), remedy_of(error))
