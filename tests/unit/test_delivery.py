"""When an event is tried again, when an endpoint is failing, and which addresses may be asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.delivery import (
    JITTER,
    LEVELS,
    MAX_GAP,
    MAX_RETRY_AFTER,
    SCHEDULE,
    Rules,
    Standing,
    Tried,
)
from worker.inputs.receivers import Receiver, may_be_asked, origin_of, read_receiver

RULES = Rules()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def failed(status: int | None = 500, retry_after: float | None = None) -> Tried:
    return Tried(reason="x", seconds=1.0, status=status, retry_after=retry_after)


def test_the_schedule_rises_from_five_seconds_to_a_day_over_three_days() -> None:
    assert (5.0, 86_400.0) == (SCHEDULE[0], SCHEDULE[-1])
    assert all(first < second for first, second in pairwise(SCHEDULE))
    assert 3 <= sum(SCHEDULE) / 86_400 <= 3.5
    assert RULES.limit == len(SCHEDULE) + 1


@given(st.integers(1, RULES.limit - 1), st.floats(0, 1, exclude_max=True))
def test_each_wait_is_its_step_with_some_jitter(tries: int, dice: float) -> None:
    wait = RULES.wait(tries, failed(), dice)

    assert wait is not None
    assert abs(wait - SCHEDULE[tries - 1]) <= SCHEDULE[tries - 1] * JITTER


def test_after_its_last_try_an_event_is_not_tried_again() -> None:
    assert RULES.wait(RULES.limit, failed(), 0.5) is None


@pytest.mark.parametrize(
    ("status", "asked", "least"),
    [(429, 60.0, 60.0), (503, 60.0, 60.0), (503, 1e9, MAX_RETRY_AFTER), (500, 60.0, 0.0), (429, 1.0, 3.75)],
)
@given(dice=st.floats(0, 1, exclude_max=True))
def test_a_receiver_that_is_overloaded_is_left_alone_as_long_as_it_asks_within_bounds(
    status: int, asked: float, least: float, dice: float
) -> None:
    wait = RULES.wait(1, failed(status, asked), dice)

    assert wait is not None
    assert least <= wait <= MAX_RETRY_AFTER * (1 + JITTER)
    assert RULES.gap(Standing(1), failed(status, asked)) >= (least if least > SCHEDULE[0] else 0)


def test_what_fails_within_one_step_is_one_failure() -> None:
    first = RULES.after_failure(Standing(), NOW)
    again = RULES.after_failure(first, NOW + timedelta(seconds=1))
    later = RULES.after_failure(again, NOW + timedelta(seconds=5))

    assert (1, 1, 2) == (first.failures, again.failures, later.failures)
    assert (NOW, NOW) == (later.since, first.since)


def test_an_endpoint_that_nothing_reaches_is_told_at_each_level_once_and_reaches_the_limit_after_days() -> None:
    standing, at, told = Standing(), NOW, []
    while standing.failures < RULES.limit:
        standing = RULES.after_failure(standing, at)
        if (level := RULES.level(standing)) is not None:
            told.append(level)
            standing = Standing(standing.failures, standing.since, standing.counted_at, level)
        assert RULES.level(standing) is None
        at += timedelta(seconds=10)

    assert [*LEVELS] == told
    assert timedelta(days=2) < at - NOW < timedelta(days=3.5)


@given(st.integers(1, 10))
def test_a_failing_endpoint_is_tried_now_and_then(failures: int) -> None:
    assert 0 < RULES.gap(Standing(failures), failed()) <= MAX_GAP


# ---- addresses

LONG = "https://oms.example/" + "a" * 2000
TLS = Receiver("https", "oms.example", 443, "/", "oms.example")
PLAIN = TLS._replace(scheme="http", port=80)
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
PRIVATE = [
    *("127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.1"),
    *("192.0.0.8", "192.0.0.192", "192.88.99.1", "::ffff:192.0.0.192", "64:ff9b::c000:c0"),
    *("168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:808:808::1", "2001:db8::1", "100::1", "", "x"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_asked_with_tls_alone(address: str) -> None:
    assert may_be_asked(TLS, address, allow_private=False)
    assert not may_be_asked(PLAIN, address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_may_not_be_asked(address: str) -> None:
    assert not may_be_asked(TLS, address, allow_private=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"])
def test_a_private_address_may_be_asked_where_that_is_allowed(address: str) -> None:
    assert may_be_asked(TLS, address, allow_private=True)
    assert may_be_asked(PLAIN, address, allow_private=True)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("https://oms.example", ("https", "oms.example", 443, "/", "oms.example")),
        ("https://OMS.example.:8443/a/b?c=d", ("https", "oms.example", 8443, "/a/b?c=d", "OMS.example.:8443")),
        ("https://[2001:db8::1]/x", ("https", "2001:db8::1", 443, "/x", "[2001:db8::1]")),
        ("https://oms.example?x=1", ("https", "oms.example", 443, "/?x=1", "oms.example")),
    ],
)
def test_an_endpoint_is_read(url: str, read: tuple[object, ...]) -> None:
    assert read == tuple(read_receiver(url, allow_private=False))


@pytest.mark.parametrize(
    "url",
    [
        *("", "oms.example", "http://oms.example", "ftp://oms.example", "https://", "https:///x", "HTTPS//x"),
        *("https://user:pass@oms.example/", "https://user@oms.example/", "https://oms.example/#x", "https://a b/"),
        *("https://oms.example:0/", "https://oms.example:99999/", "https://oms.example:x/", "https://[::1/"),
        *("https://oms.example/\r\nX: y", "https://oms.example\\@evil.example/", "https://ömß.example/"),
        *(
            "https://oms.example/\x00",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "https://oms.example/" + "a" * 2000,
        ),
    ],
)
def test_what_is_no_endpoint_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"\.$") as refused:
        read_receiver(url, allow_private=False)

    assert "pass@" not in str(refused.value)


def test_plain_http_is_read_only_where_private_addresses_are_allowed() -> None:
    assert ("http", "localhost", 8080) == read_receiver("http://localhost:8080/", allow_private=True)[:3]


def test_of_an_address_only_its_origin_is_kept() -> None:
    assert "https://oms.example:8443" == origin_of("https://oms.example:8443/hooks/secret-token?key=secret")
