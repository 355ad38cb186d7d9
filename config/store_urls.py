"""URLs of the stores: how those of Redis are written, and what may stand after the `?` of each. Pure.

    redis://[user:password@]host[:port][/db]                               one server, or a managed one's address
    unix:///path?db=0
    redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]  the primary that Sentinels name
    redis+cluster://[user:password@]host[:port],host[:port]                a cluster, by some of its nodes

`rediss` in the place of `redis` is TLS, to Sentinels and servers alike. User and password are those of the servers that
have the data; Sentinels have `sentinel_username` and `sentinel_password`. Prefect and RedisVL write them so, too.
Fields are called as libpq and redis-py call them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
ANY: tuple[str, ...] = ()
POSTGRESQL_FIELDS: Mapping[str, tuple[str, ...]] = {
    "sslmode": SSL_MODES,
    "ssl": SSL_MODES,
    "sslrootcert": ANY,
    "sslcert": ANY,
    "sslkey": ANY,
    "sslpassword": ANY,
    "sslcrl": ANY,
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": TLS_VERSIONS,
    "ssl_max_protocol_version": TLS_VERSIONS,
    "channel_binding": ("disable", "prefer"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "application_name": ANY,
    "options": ANY,
    "host": ANY,
    "user": ANY,
    "password": ANY,
    "passfile": ANY,
    "krbsrvname": ANY,
    "gsslib": ("gssapi",),
    "prepared_statement_cache_size": ANY,
    "statement_cache_size": ANY,
}
"""Fields of a PostgreSQL URL → their values (empty: any). All but the last two are libpq's."""
REDIS_FIELDS: Mapping[str, tuple[str, ...]] = {
    "db": ANY,
    "ssl_ca_certs": ANY,
    "ssl_certfile": ANY,
    "ssl_keyfile": ANY,
    "ssl_cert_reqs": ("required", "none"),
    "ssl_check_hostname": ("true", "false"),
}
"""Fields of a Redis URL → their values, as redis-py calls them."""
SENTINEL_FIELDS: Mapping[str, tuple[str, ...]] = {**REDIS_FIELDS, "sentinel_username": ANY, "sentinel_password": ANY}
"""Fields of the URL of Sentinels → their values."""
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
REDIS_PORT, SENTINEL_PORT = 6379, 26379
HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*)(:(?P<port>[0-9]{1,5}))?", re.ASCII)
CURES: Mapping[str, str] = {
    "connect_timeout": "remove it: database.timeout_seconds bounds connecting",
    "command_timeout": "remove it: database.timeout_seconds bounds a statement",
    "pool_size": "remove it, and set database.pool_size",
    "pgbouncer": "remove it, and write statement_cache_size=0&prepared_statement_cache_size=0 instead",
    "channel_binding": "remove it, and use sslmode=verify-full: the driver has no channel binding",
    "dbname": "write the database's name after the / of the URL",
    "port": "write the port after the host",
    "search_path": "write options=-csearch_path%3DNAME",
}
"""Fields that other programs put into such URLs → what does the same here."""
SECRET_FIELDS = ("password", "sslpassword", "sentinel_password")
SQLALCHEMY_FIELDS = ("host", "prepared_statement_cache_size")
SYSTEM_ROOTS = "system"
IN_MEMORY, LONGEST_NAME = ":memory:", 255
"""`sslrootcert` of libpq for the certificate authorities that the system knows."""
FILE_FIELDS = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class UrlProblem(NamedTuple):
    """Why a URL cannot be used, and what to do."""

    reason: str
    fix: str


class RedisPlace(NamedTuple):
    """A Redis URL, taken apart."""

    kind: str
    """server, sentinel or cluster."""
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str
    socket: str
    """Path of a socket of this machine; then there are no hosts."""
    service: str
    """Name that Sentinels know the primary by."""
    database: str
    fields: Mapping[str, str]


def redis_place(url: str) -> RedisPlace:
    """Take a Redis URL apart. Raises ValueError, with what is wrong, where it is none."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in REDIS_SCHEMES or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("is not a Redis URL")
    base, _, kind = scheme.partition("+")
    found = re.fullmatch(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", rest)
    network, path, query = found.groups("") if found else ("", "", "")
    who, _, members = network.rpartition("@")
    user, _, password = who.partition(":")
    fields = dict(parse_qsl(query or "", keep_blank_values=True))
    socket = path if scheme == "unix" else ""
    port = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    hosts = () if socket else tuple(_host(member, port) for member in members.split(","))
    if not kind and len(hosts) > 1:
        raise ValueError("names several servers; of a cluster write redis+cluster://, of Sentinels redis+sentinel://")
    if kind and not all(host for host, _ in hosts):
        raise ValueError("is not a Redis URL: a host in it is empty")
    service, _, database = path.strip("/").partition("/") if kind == "sentinel" else ("", "", path.strip("/"))
    database = fields.get("db", "") if socket else database
    hosts = tuple((host or "127.0.0.1", number) for host, number in hosts)
    return RedisPlace(
        kind or "server",
        base == "rediss",
        hosts,
        unquote(user),
        unquote(password),
        socket,
        unquote(service),
        database,
        fields,
    )


def _host(member: str, port: int) -> tuple[str, int]:
    found = HOST.fullmatch(member)
    if found is None or int(found["port"] or 0) > 65_535:
        raise ValueError("is not a Redis URL: it names a host or a port that cannot be")
    return found["host"].strip("[]"), int(found["port"] or port)


def password_of(url: str) -> str:
    """Return the password before the host of a store's URL; "" where there is none, or no URL."""
    found = re.match(r"[\w+.-]+://[^/?#@]*:([^/?#]*)@", url)
    return unquote(found[1]) if found else ""


def fields_of(url: str) -> dict[str, str]:
    """Return the fields after the `?`; the last of several of a name."""
    return dict(parse_qsl(url.partition("#")[0].partition("?")[2], keep_blank_values=True))


def find_url_problems(url: str) -> Iterator[UrlProblem]:
    """Yield what the URL of a store cannot have. `url`: where it is a database's, its scheme is one of ours."""
    scheme = url.partition("://")[0]
    if scheme.startswith("sqlite"):
        yield from _sqlite_problems(url)
        return
    if not scheme.startswith("postgresql"):
        yield from find_redis_problems(url)
        return
    known, found = POSTGRESQL_FIELDS, fields_of(url)
    for name, value in found.items():
        yield from _field_problems(name, value, known)
    if "sslmode" in found and "ssl" in found:
        yield UrlProblem("says both `ssl` and `sslmode`", "remove `ssl`: it is the same")
    mode = found.get("sslmode", found.get("ssl", "prefer"))
    if found.get("sslnegotiation") == "direct" and mode not in SSL_MODES[3:]:
        yield UrlProblem("has sslnegotiation=direct without TLS", "add sslmode=require, verify-ca or verify-full")


def _sqlite_problems(url: str) -> Iterator[UrlProblem]:
    """Yield why a path can be no file's: it has no name, or a longer one than Linux has (NAME_MAX)."""
    path = url.partition("?")[0].partition("://")[2][1:]
    *_, name = parts = path.split("/")
    if name in ("", IN_MEMORY) or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        yield UrlProblem("names no file", 'write it like "sqlite+aiosqlite:///var/tollkeeper.db"')


def find_redis_problems(url: str) -> Iterator[UrlProblem]:
    """Yield what the URL of a Redis cannot have, also where it is another store's."""
    try:
        place = redis_place(url)
    except ValueError as error:
        yield UrlProblem(str(error), 'write redis://host:port/0, rediss:// for TLS, or "" for the embedded store')
        return
    scheme, known = url.partition("://")[0], SENTINEL_FIELDS if place.kind == "sentinel" else REDIS_FIELDS
    for name, value in place.fields.items():
        yield from _field_problems(name, value, known)
    tls = [name for name in place.fields if name.startswith("ssl_")]
    if not place.tls and tls:
        secure = scheme.replace("redis", "rediss", 1) if place.hosts else "rediss"
        yield UrlProblem(f"has the field {tls[0]!r} without TLS", f"write {secure}:// for TLS")
    if place.kind == "sentinel" and not place.service:
        yield UrlProblem(
            "does not say which service the Sentinels are asked for",
            "write its name after the hosts: redis+sentinel://host1,host2/mymaster/0",
        )
    if place.kind == "cluster" and place.database not in ("", "0"):
        yield UrlProblem("names a database, and a cluster has number 0 alone", "write nothing after the hosts")
    elif place.database and not (place.database.isascii() and place.database.isdigit()):
        example = "redis+sentinel://host1,host2/mymaster/0" if place.kind == "sentinel" else "redis://host:port/0"
        yield UrlProblem("names a database that is no number", f"write {example}")


def _field_problems(name: str, value: str, known: Mapping[str, tuple[str, ...]]) -> Iterator[UrlProblem]:
    shown = name[:40]
    if name == "channel_binding" and value == "require":
        yield UrlProblem("has channel_binding=require, which cannot be kept", CURES[name])
    elif name not in known:
        fix = CURES.get(name, f"remove it; known are {', '.join(known)}")
        yield UrlProblem(f"has the field {shown!r}, which is not known", fix)
    elif not value:
        yield UrlProblem(f"has the field {shown!r} without a value", "give it one, or remove it")
    elif known[name] and value not in known[name]:
        yield UrlProblem(f"has a {shown!r} that there is not", f"write one of {', '.join(known[name])}")
    elif name.endswith("cache_size") and not (value.isascii() and value.isdigit()):
        yield UrlProblem(f"has a {shown!r} that is no number", "write a whole number, 0 for none")
