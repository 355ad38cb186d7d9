"""URLs of PostgreSQL and Redis: what libpq and redis-py know is taken, all else refused with its cure."""

import pytest

from config.errors import ConfigError
from config.load import parse_settings
from config.store_urls import CURES, POSTGRESQL_FIELDS, REDIS_FIELDS, SSL_MODES, redis_place

DATABASE = "postgresql+asyncpg://db/tollkeeper"


def problems(**environ: str) -> list[str]:
    try:
        parse_settings(b"", "proxy.toml", {f"TOLLKEEPER_{name}": value for name, value in environ.items()})
    except ConfigError as error:
        return [f"{one.reason}; {one.fix}" for one in error.problems]
    return []


@pytest.mark.parametrize("mode", SSL_MODES)
@pytest.mark.parametrize("name", ["sslmode", "ssl"])
def test_every_mode_of_tls_is_taken(mode: str, name: str) -> None:
    assert problems(DATABASE__URL=f"{DATABASE}?{name}={mode}") == []


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=require&channel_binding=prefer&application_name=tollkeeper",
        "sslmode=require&target_session_attrs=read-write&options=-csearch_path%3Dmoney",
        "statement_cache_size=0&prepared_statement_cache_size=0",
        "host=a:5432&host=b:5432",
        "sslmode=verify-ca&sslnegotiation=direct&ssl_min_protocol_version=TLSv1.3",
    ],
)
def test_what_managed_databases_write_is_taken(query: str) -> None:
    assert problems(DATABASE__URL=f"{DATABASE}?{query}") == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=on", "write one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=", "'sslmode' without a value"),
        ("sslmod=require", "the field 'sslmod', which is not known"),
        ("sslmode=require&ssl=require", "says both `ssl` and `sslmode`"),
        ("sslmode=require&channel_binding=require", "sslmode=verify-full"),
        ("sslnegotiation=direct", "add sslmode=require"),
        ("target_session_attrs=master", "write one of any, primary"),
        ("ssl_min_protocol_version=1.2", "TLSv1.2"),
        ("statement_cache_size=none", "a whole number, 0 for none"),
        *((f"{name}=require", cure) for name, cure in CURES.items()),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_cure(query: str, said: str) -> None:
    (found,) = problems(DATABASE__URL=f"{DATABASE}?{query}")
    assert said in found


def test_several_fields_are_said_at_once() -> None:
    assert len(problems(DATABASE__URL=f"{DATABASE}?sslmode=on&pgbouncer=true&foo=1")) == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://cache:6379/one", "names a database that is no number"),
        ("redis://cache:6379/0?ssl_ca_certs=/ca.pem", "write rediss:// for TLS"),
        ("rediss://cache:6379/0?ssl_ca=/ca.pem", "the field 'ssl_ca', which is not known"),
        ("rediss://cache:6379/0?ssl_cert_reqs=maybe", "write one of required, none"),
        ("redis://a:6379,b:6379/0", "of a cluster write redis+cluster://, of Sentinels redis+sentinel://"),
        ("redis+cluster://a,,b", "a host in it is empty"),
        ("redis+cluster://a:7000:b", "a host or a port that cannot be"),
        ("redis+cluster://a:70000", "a host or a port that cannot be"),
        ("redis+cluster://a/1", "a cluster has number 0 alone"),
        ("redis+cluster://a?ssl_ca_certs=/ca.pem", "write rediss+cluster:// for TLS"),
        ("redis+cluster://a?sentinel_password=x", "the field 'sentinel_password', which is not known"),
        ("redis+sentinel://a,b", "write its name after the hosts: redis+sentinel://host1,host2/mymaster/0"),
        ("redis+sentinel://a/mymaster/one", "names a database that is no number"),
        ("redis+sentinel://a/mymaster?sentinel_pasword=x", "the field 'sentinel_pasword', which is not known"),
        ("redis-cluster://a", "is not a Redis URL"),
    ],
)
def test_a_redis_url_that_cannot_be_kept_is_refused(url: str, said: str) -> None:
    (found,) = problems(REDIS__URL=url)
    assert said in found


@pytest.mark.parametrize(
    "url",
    [
        "rediss://cache:6380/0?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_check_hostname=false",
        "rediss://:secret@cache/3?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "redis+cluster://a:7000,b:7001,[::1]:7002/",
        "rediss+cluster://app:p%40ss@a.example.com,b.example.com?ssl_ca_certs=/ca.pem",
        "redis+sentinel://:p%2Fss@a,b:26380,c/mymaster/2?sentinel_username=app&sentinel_password=x",
        "rediss+sentinel://a/mymaster?ssl_cert_reqs=none",
    ],
)
def test_a_redis_url_of_one_server_or_of_several_is_taken(url: str) -> None:
    assert problems(REDIS__URL=url) == []


def test_a_redis_url_is_taken_apart() -> None:
    place = redis_place("rediss+sentinel://app:p%40ss@a,[::1]:5/my%2Dmaster/2?sentinel_password=x")
    assert (place.kind, place.tls, place.user, place.password) == ("sentinel", True, "app", "p@ss")
    assert (place.hosts, place.service, place.database) == ((("a", 26379), ("::1", 5)), "my-master", "2")
    assert redis_place("redis+cluster://a,b:1").hosts == (("a", 6379), ("b", 1))
    assert redis_place("redis://").hosts == (("127.0.0.1", 6379),)
    assert redis_place("unix:///run/redis.sock?db=2")[5:8] == ("/run/redis.sock", "", "2")


def test_passwords_in_the_fields_do_not_stand_in_the_file_either() -> None:
    for name in ("password", "sslpassword"):
        with pytest.raises(ConfigError, match="has a password in it") as caught:
            parse_settings(f'[database]\nurl = "{DATABASE}?{name}=hunter2"\n'.encode(), "proxy.toml", {})
        assert "hunter2" not in str(caught.value)
        assert problems(DATABASE__URL=f"{DATABASE}?{name}=hunter2") == []
        assert problems(DATABASE__URL=DATABASE, DATABASE__REPLICA_URL=f"{DATABASE}?{name}=hunter2") == []
    urls = ("redis+sentinel://a,b/m?sentinel_password=hunter2", "redis+cluster://:hunter2@a:7000,b:7001")
    for url in urls:
        with pytest.raises(ConfigError, match="has a password in it") as caught:
            parse_settings(f'[redis]\nurl = "{url}"\n'.encode(), "proxy.toml", {})
        assert "hunter2" not in str(caught.value)


def test_every_field_is_known_by_one_name() -> None:
    assert not set(CURES) & (set(POSTGRESQL_FIELDS) - {"channel_binding"})
    assert not set(REDIS_FIELDS) & set(POSTGRESQL_FIELDS)
