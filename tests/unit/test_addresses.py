"""What an address in a setting means; what cannot mean one thing is refused, and no password is repeated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import parse_url

from worker.inputs.addresses import check_base_url, check_sentry_dsn, parse_redis_url, passwords_in


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://cache:6380/3",
        "redis://cache?db=3",
        "redis://cache/1?db=3",
        "redis://[::1]:6380/0",
        "redis://ann:p%2Fw%40%23@cache/0",
        "redis://:p@ss@cache/0",
        "redis://ann@cache",
        "redis://cache?username=ann&password=p%2Fw",
        "redis://cache?protocol=2&health_check_interval=10&client_name=oms",
        "redis://cache?socket_timeout=4.5&socket_connect_timeout=2&retry_on_timeout=no&socket_keepalive=yes",
        "redis://cache?max_connections=200",
        "unix:///run/redis%20one.sock?db=2",
        "unix://ann:pw@/run/redis.sock",
    ],
)
def test_every_form_means_what_it_means_to_redis_py(url: str) -> None:
    meant = {name: value for name, value in parse_url(url).items() if name != "connection_class"}
    read = parse_redis_url(url)
    who = {name: value for name in ("username", "password") if (value := getattr(read, name))}
    usual: dict[str, Any] = {} if url.startswith("unix") else {"host": "localhost", "port": 6379}

    assert {"db": 0, **usual, **meant} == {**read.place, **read.options, **who}


@pytest.mark.parametrize(
    "words",
    ["", "?ssl_cert_reqs=required", "?ssl_ca_certs=/ca.pem&ssl_check_hostname=false", "?ssl_check_hostname=true"],
)
def test_the_certificate_of_a_server_is_always_verified(words: str) -> None:
    options = parse_redis_url(f"rediss://cache{words}").options

    assert "required" == options["ssl_cert_reqs"]
    assert options["ssl_check_hostname"] is ("false" not in words)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param("redis://:pa/secret@cache/0", "percent-encode", id="a slash in the password"),
        pytest.param("redis://:12/secret@cache/0", "percent-encode", id="a slash behind digits"),
        pytest.param("redis://:pa#secret@cache/0", "percent-encode", id="a hash in the password"),
        pytest.param("redis://:pa?secret@cache/0", "percent-encode", id="a question mark in the password"),
        pytest.param("redis://:12?secret@cache/0", "percent-encode", id="a question mark behind digits"),
        pytest.param("redis://:pa[secret@cache/0", "percent-encode", id="a bracket in the password"),
        pytest.param("redis://:pa secret@cache/0", "space", id="a space in the password"),
        pytest.param("redis://:pa\nsecret@cache/0", "cannot be seen", id="a line break"),
        pytest.param("redis://cache/secret", "names no database", id="a path that is no number"),
        pytest.param("redis://cache/1/2", "names no database", id="two numbers"),
        pytest.param("redis://cache/-1", "names no database", id="a number below 0"),
        pytest.param("redis://cache/\uff11", "names no database", id="a digit of another script"),
        pytest.param("redis://cache:0", "can exist", id="no port"),
        pytest.param("redis://cache:70000", "check its port", id="a port too high"),
        pytest.param("redis://a;redis://secret", "can exist", id="several servers"),
        pytest.param("http://secret", "must begin with redis://", id="another scheme"),
        pytest.param("sentinel://secret", "what they watch", id="sentinels that watch nothing"),
        pytest.param("sentinel:///mymaster/0", "must name sentinels", id="no sentinel"),
        pytest.param("sentinel://a,,b/mymaster", "must name sentinels", id="a sentinel without a name"),
        pytest.param("sentinel://a/my%20secret/0", "what they watch", id="a service that Sentinel does not take"),
        pytest.param("sentinel://a/mymaster/secret", "names no database", id="a service and no number"),
        pytest.param("sentinel://a:0/mymaster", "can exist", id="a sentinel without a port"),
        pytest.param("sentinel://:pa/secret@a/mymaster", "percent-encode", id="a slash before sentinels"),
        pytest.param("sentinel://a/m?ssl_ca_certs=/c", "only sentinels:// speaks TLS", id="sentinels without TLS"),
        pytest.param("redis://cache?sentinel_password=secret", "only sentinel://", id="a word of sentinels"),
        pytest.param("redis+socket:///secret", "must begin with redis://", id="a socket as kombu writes it"),
        pytest.param("cache:6379", "must begin with redis://", id="no scheme"),
        pytest.param("unix://run/secret", "absolute path", id="a socket without a path"),
        pytest.param("unix://", "absolute path", id="nothing"),
        pytest.param("redis://cache?secret=1", "not every part can follow", id="a word that nobody knows"),
        pytest.param("redis://cache?decode_responses=1", "(decode_responses)", id="a word that changes every answer"),
        pytest.param("redis://cache?credential_provider=os.system", "(credential_provider)", id="a word of kombu's"),
        pytest.param("redis://cache?db=secret", "db must be", id="a word for a number"),
        pytest.param("redis://cache?db=1_0", "db must be", id="an underscore"),
        pytest.param("redis://cache?db=", "db must be", id="nothing for a number"),
        pytest.param("redis://cache?socket_timeout=nan", "socket_timeout must be", id="no number"),
        pytest.param("redis://cache?socket_timeout=1", "from 3 to 60", id="shorter than an idle worker waits"),
        pytest.param("redis://cache?socket_timeout=1e9", "from 3 to 60", id="longer than a thread may be held"),
        pytest.param("redis://cache?protocol=4", "protocol must be", id="a protocol to come"),
        pytest.param("redis://cache?max_connections=10", "from 100", id="fewer connections than Celery needs"),
        pytest.param("redis://cache?retry_on_timeout=maybe", "true or false", id="neither"),
        pytest.param("redis://cache?ssl_ca_certs=/ca.pem", "only rediss:// speaks TLS", id="TLS words without TLS"),
        pytest.param("rediss://cache?ssl_cert_reqs=none", "must be required", id="a server that nobody verifies"),
        pytest.param("rediss://cache?ssl_cert_reqs=CERT_OPTIONAL", "must be required", id="perhaps verified"),
        pytest.param("rediss://cache?ssl_check_hostname=false", "any server", id="any name, any authority"),
        pytest.param("rediss://cache?ssl_ca_certs=ca.pem", "absolute path", id="a file of the working folder"),
        pytest.param("unix:///run/r.sock?socket_keepalive=1", "has not", id="keepalive of a file"),
    ],
)
def test_what_cannot_mean_one_thing_to_all_is_refused_in_a_sentence(url: str, said: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL") as refused:
        parse_redis_url(url)

    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_address_of_sentinels_names_them_what_they_watch_and_who_asks() -> None:
    read = parse_redis_url("sentinel://ann:p%2Fw@a:1,b,[::1]:3/my.master/2?sentinel_password=s%23w&protocol=2")

    assert (("a", 1), ("b", 26379), ("::1", 3)) == read.sentinels
    assert {"service": "my.master"} == read.place
    assert ("ann", "p/w") == read.credentials
    assert {"password": "s#w"} == read.sentinel_credentials
    assert {"db": 2, "protocol": 2} == read.options
    assert "s#w" not in f"{read} {read.where}"


def test_servers_and_sentinels_are_verified_alike() -> None:
    read = parse_redis_url("sentinels://a,b/mymaster?ssl_ca_certs=/ca.pem")

    assert read.tls
    assert {
        "db": 0,
        "ssl_ca_certs": "/ca.pem",
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
    } == read.options


SECRET = "Zq9Zq9"


@given(st.text("/:@?#%[]& \\;=ab1\n\u00e9", max_size=12), st.text("/:@?#%[]&=ab1", max_size=6))
def test_no_part_of_a_password_is_in_a_refusal(before: str, after: str) -> None:
    try:
        parse_redis_url(f"redis://:{before}{SECRET}{after}@cache:6379/0")
    except ValueError as error:
        assert SECRET not in str(error)  # noqa: PT017 - where it is none, there is nothing to see


def test_the_password_of_sentinels_is_known_as_a_secret() -> None:
    assert SECRET in passwords_in(f"sentinel://a,b/mymaster/0?sentinel_password={SECRET}")


def test_no_password_shows_when_an_address_is_printed() -> None:
    read = parse_redis_url(f"rediss://ann:{SECRET}@cache?ssl_keyfile=/k&ssl_password={SECRET}")

    assert SECRET not in repr(read)


def test_who_asks_is_what_auth_is_given() -> None:
    urls = ("redis://cache", "redis://:pw@cache", "redis://ann:pw@cache", "redis://ann@cache")

    assert [(), ("pw",), ("ann", "pw"), ("ann", "")] == [parse_redis_url(url).credentials for url in urls]


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("redis://:p%2Fw@cache", ["p%2Fw", "p/w"]),
        ("redis://ann:p/w#x@cache/0", ["p/w#x"]),
        ("postgresql+psycopg://ann:p%40w+x@db/orders?sslpassword=key", ["p%40w+x", "p@w+x", "p@w x", "key"]),
        ("postgresql:///orders?host=db&password=pw", ["pw"]),
        ("http://ann:pw@proxy:3128", ["pw"]),
        ("sqlite:///a.sqlite3", []),
        ("redis://localhost:6379/0", []),
        ("", []),
    ],
)
def test_every_password_of_an_address_is_found_in_each_form(url: str, passwords: list[str]) -> None:
    assert passwords == passwords_in(url)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://production.trackstarhq.com/", "https://production.trackstarhq.com"),
        ("https://trackstar.example:8443", "https://trackstar.example:8443"),
        ("http://127.0.0.1:8900", "http://127.0.0.1:8900"),
        ("http://127.8.8.8", "http://127.8.8.8"),
        ("http://localhost:8900/", "http://localhost:8900"),
        ("http://[::1]:8900", "http://[::1]:8900"),
    ],
)
def test_trackstar_is_called_over_tls_or_on_this_machine(url: str, kept: str) -> None:
    assert kept == check_base_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "trackstar.example",
        "trackstar.example:443",
        "//trackstar.example",
        "https:trackstar.example",
        "https://",
        "https:///v1",
        "ftp://trackstar.example",
        "https://good.example@evil.example",
        "https://key:secret@trackstar.example",
        "https://good.example\\@evil.example",
        "https://trackstar.example/v1",
        "https://trackstar.example?key=secret",
        "https://trackstar.example/#secret",
        "https://trackstar.example:port",
        "https://trackstar.example:0",
        "https://track star.example",
        "https://trackst\u0430r.example",
        "http://trackstar.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://0.0.0.0:8900",
        "http://10.0.0.1",
        "http://2130706433",
        "http://[::ffff:10.0.0.1]",
    ],
)
def test_an_address_that_would_tell_the_key_to_others_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="TRACKSTAR_BASE_URL") as refused:
        check_base_url(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "https://sentry.io/1",
        "https://secret@sentry.io",
        "https://secret@sentry.io/project",
        "https://secret@/1",
        "secret@sentry.io/1",
        "https://secret@sentry.io:port/1",
        "sentry",
    ],
)
def test_what_is_no_dsn_is_told_what_one_looks_like(dsn: str) -> None:
    with pytest.raises(ValueError, match="SENTRY_DSN must look like https://KEY@HOST/NUMBER") as refused:
        check_sentry_dsn(dsn)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("dsn", ["https://key@sentry.io/1", "https://key:old@o1.ingest.sentry.io:443/path/42"])
def test_a_dsn_is_taken(dsn: str) -> None:
    check_sentry_dsn(dsn)
