"""What comes from Trackstar's side, bounded before it is looked at: bodies, lists, ids; and the address of a proxy."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import refusal_claim

from worker.cancellation.answer import MAX_ITEMS, read_reply
from worker.cancellation.listing import read_connection
from worker.environment import SettingsError
from worker.inputs.body import TooLargeError, decompressed, text_of
from worker.inputs.ids import may_change_form, same_order
from worker.inputs.proxy import is_proxy_url
from worker.runtime.attempt import batches_of_reads
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

anything_goes = settings(deadline=None)
LIMIT = 4096


def packed(body: bytes) -> bytes:
    return gzip.compress(body, 6, mtime=0)  # the same bytes at any time: they are a test's name


# ---- bodies


@anything_goes
@given(st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate", "br", "gzip, deflate", "\xff"]))
def test_any_bytes_under_any_label_give_bytes_within_the_limit(content: bytes, label: str) -> None:
    assert LIMIT >= len(decompressed(content, label, LIMIT))


@anything_goes
@given(st.binary(max_size=LIMIT), st.integers(0, 3))
def test_what_was_compressed_a_few_times_comes_back(content: bytes, layers: int) -> None:
    body = b"{" + content[:-1]
    for _ in range(layers):
        body = packed(body)

    assert b"{" + content[:-1] == decompressed(body, "gzip", LIMIT)


@pytest.mark.parametrize("cut", range(1, 20))
def test_what_is_cut_stays_as_it_is(cut: int) -> None:
    body = packed(b'{"a": 1}')[:-cut]

    assert body == decompressed(body, "gzip", LIMIT)


@pytest.mark.parametrize(
    ("label", "body"),
    [
        ("gzip", packed(b" " * (LIMIT + 1))),
        ("deflate", zlib.compress(b" " * (LIMIT + 1))),
        ("gzip", packed(b" " * LIMIT) + packed(b" ")),
        ("gzip", packed(packed(b" " * 10_000_000))),
    ],
)
def test_what_inflates_beyond_the_limit_is_refused_and_never_held(label: str, body: bytes) -> None:
    with pytest.raises(TooLargeError):
        decompressed(body, label, LIMIT)


def test_a_body_of_just_the_limit_is_kept() -> None:
    assert LIMIT == len(decompressed(packed(b" " * LIMIT), "gzip", LIMIT))


def test_endless_members_of_nothing_cost_no_time() -> None:
    started = time.thread_time()
    decompressed(packed(b"") * 200_000, "gzip", 4_194_304)

    assert 0.2 > time.thread_time() - started


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_is_read_in_every_coding_of_unicode(coding: str) -> None:
    assert '{"a": "\u00f6"}' == text_of('{"a": "\u00f6"}'.encode(coding))


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf \r\n", b""])
def test_a_mark_and_nothing_else_is_an_empty_body(content: bytes) -> None:
    assert "empty" == read_reply(200, content).body


# ---- lists


MILLIONS = 1_390_000
EMPTY_OBJECTS = b"{}," * MILLIONS + b"{}"


@pytest.mark.parametrize(
    "content",
    [
        b'{"data":[%s]}' % EMPTY_OBJECTS,
        b'{"data":{"id":"a","shipments":[%s]}}' % EMPTY_OBJECTS,
        b'{"data":{"id":[%s]}}' % EMPTY_OBJECTS,
        b'{"data":{"status":[%s]}}' % EMPTY_OBJECTS,
        b'{"error":[%s]}' % EMPTY_OBJECTS,
        b'{"origin":[%s],"id":[]}' % EMPTY_OBJECTS,
        b'{"unused_fields":[%s]}' % EMPTY_OBJECTS,
        b"[%s]" % EMPTY_OBJECTS,
        b'{"a":"%s' % (b"\\n" * 2_000_000),
        b'{"a":"\\ud83d%s"}' % (b"\\n" * 2_000_000),
    ],
    ids=["orders", "shipments", "id", "status", "error", "origin", "unused", "a list", "cut escapes", "escapes"],
)
def test_millions_of_items_are_skipped_and_not_made_into_objects(content: bytes) -> None:
    started = time.thread_time()
    reply = read_reply(200, content)
    took = time.thread_time() - started
    tracemalloc.start()
    read_reply(200, content)
    _, held = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert MAX_ITEMS >= len(reply.orders)
    assert 0.5 > took  # some 0.03 s on a quiet machine; 2.3 s when each was looked at
    assert 10 * len(content) > held  # a few copies of the text; an object for each is twenty


@pytest.mark.parametrize(("more", "count"), [(False, 0), (False, 1), (False, 100), (True, 101), (True, 100_000)])
def test_a_list_holds_at_most_what_was_asked_for_and_tells_of_more(more: bool, count: int) -> None:
    reply = read_reply(200, b'{"data":[%s]}' % b",".join(b'{"id":"%d"}' % number for number in range(count)))

    assert more is reply.more
    assert [str(number) for number in range(min(count, 100))] == [order.id for order in reply.orders]


def test_one_order_is_no_list_that_is_too_long() -> None:
    assert not read_reply(200, b'{"data":{"id":"a"}}').more


@pytest.mark.parametrize(
    "content",
    [rb'{"data": {"a": "\ud83d"}}', b'{"data": {"a": 1e400}}', b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}"],
)
def test_what_cannot_be_told_of_a_connection_is_not_told(content: bytes) -> None:
    assert read_connection(200, content).connection is None


# ---- ids


@pytest.mark.parametrize("form", ["00123", "caf\u00e9", " x", "0"])
def test_an_id_that_may_come_back_in_another_form_is_asked_for_alone(form: str) -> None:
    claims = [refusal_claim(number, order_id=name) for number, name in enumerate(["A-1", form, "A-2"])]

    assert may_change_form(form)
    assert [[form], ["A-1", "A-2"]] == [[claim.order_id for claim in batch] for batch in batches_of_reads(claims)]


@pytest.mark.parametrize("order_id", ["1001", "A-1001", "gid://shopify/Order/1", "a b"])
def test_an_ordinary_id_is_asked_for_with_others(order_id: str) -> None:
    assert not may_change_form(order_id)


@anything_goes
@given(st.text(max_size=20), st.text(max_size=20))
def test_to_name_the_same_order_goes_both_ways(one: str, other: str) -> None:
    assert same_order(one, one)
    assert same_order(one, other) is same_order(other, one)


# ---- the ways to Trackstar


@pytest.fixture
def fresh_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.mark.parametrize(
    "url", ["http://proxy:3128", "https://proxy.example", "http://me:p%40ss@10.0.0.1:1/", "http://[::1]:3128"]
)
def test_a_proxy_is_an_address(url: str) -> None:
    assert is_proxy_url(url)


@pytest.mark.parametrize(
    "text",
    ["proxy:3128", "socks5://proxy", "http://", "http://proxy/path", "http://proxy?x", "http://proxy:99999",
     "http://[::1", "http://pro xy\n", "http://:3128", "http://pr\u00f6xy"],
)  # fmt: skip
@pytest.mark.usefixtures("fresh_settings")
def test_what_is_no_address_of_a_proxy_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TRACKSTAR_PROXY", text)

    with pytest.raises(SettingsError, match="TRACKSTAR_PROXY: set it to http://host:port") as refused:
        load_settings()

    assert text not in str(refused.value).removeprefix("TRACKSTAR_PROXY: set it to http://host:port")


@pytest.mark.usefixtures("fresh_settings")
def test_the_password_of_a_proxy_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKSTAR_PROXY", "http://me:s3cret%2Fword@proxy:3128")

    assert {"http://me:s3cret%2Fword@proxy:3128", "s3cret%2Fword", "s3cret/word"} <= set(load_settings().secrets())
    assert "s3cret" not in repr(load_settings())


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx\n"])
@pytest.mark.usefixtures("fresh_settings")
def test_a_bundle_that_holds_no_certificates_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("CA_BUNDLE", str(path))

    with pytest.raises(SettingsError, match="CA_BUNDLE: no certificates in PEM can be read from"):
        load_settings()
