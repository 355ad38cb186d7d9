"""URLs of the stores: what may stand after their `?`, under the names of libpq and of redis-py. Pure."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

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
SECRET_FIELDS = ("password", "sslpassword")
SQLALCHEMY_FIELDS = ("host", "prepared_statement_cache_size")
SYSTEM_ROOTS = "system"
"""`sslrootcert` of libpq for the certificate authorities that the system knows."""
FILE_FIELDS = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class UrlProblem(NamedTuple):
    """Why a URL cannot be used, and what to do."""

    reason: str
    fix: str


def fields_of(url: str) -> dict[str, str]:
    """Return the fields after the `?`; the last of several of a name."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def find_url_problems(url: str) -> Iterator[UrlProblem]:
    """Yield each field that the URL of a store cannot have. `url`: its scheme is one of ours."""
    scheme = urlsplit(url).scheme
    if scheme.startswith("sqlite"):
        return
    known = POSTGRESQL_FIELDS if scheme.startswith("postgresql") else REDIS_FIELDS
    found = fields_of(url)
    for name, value in found.items():
        yield from _field_problems(name, value, known)
    if "sslmode" in found and "ssl" in found:
        yield UrlProblem("says both `ssl` and `sslmode`", "remove `ssl`: it is the same")
    mode = found.get("sslmode", found.get("ssl", "prefer"))
    if found.get("sslnegotiation") == "direct" and mode not in SSL_MODES[3:]:
        yield UrlProblem("has sslnegotiation=direct without TLS", "add sslmode=require, verify-ca or verify-full")
    tls = [name for name in found if name.startswith("ssl_")]
    if scheme in ("redis", "unix") and tls:
        yield UrlProblem(f"has the field {tls[0]!r} without TLS", "write rediss:// for TLS")
    database = urlsplit(url).path.strip("/") if scheme in ("redis", "rediss") else found.get("db", "")
    if known is REDIS_FIELDS and database and not (database.isascii() and database.isdigit()):
        yield UrlProblem("names a database that is no number", "write redis://host:port/0")


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
