"""TLS to PostgreSQL and Redis, under libpq's and redis-py's names, against real servers behind a real TLS."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from sqlalchemy import text

from billing.balances.redis.servers.by_url import open_servers
from billing.money.amounts import Millicredits
from billing.money.buckets import SLOTS
from billing.money.errors import StoreUnavailable
from billing.money.holds import Held, Settled
from billing.storage.database import Database
from config.errors import ConfigError
from proxy.server.startup_checks import check_redis
from tests.support.customers import new_customer
from tests.support.money_api import settings
from tests.support.redis_groups import PASSWORD, SENTINEL_PASSWORD, SERVICE, SentinelGroup, ask, port_with_bus
from tests.support.servers import RedisServer, Sandbox, Tollkeeper, wait_until
from tests.support.stores import close_books, open_books, record, request
from tests.support.tls import Authority, TlsFront


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other-ca"), "another authority")


def front_of(postgres: str, authority: Authority, client_ca: Path | None = None) -> TlsFront:
    """TLS before the socket of a PostgreSQL; its certificate is for `localhost`, not for 127.0.0.1."""
    folder = parse_qs(urlsplit(postgres).query)["host"][0]
    return TlsFront(
        authority.issue("localhost"),
        lambda: asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432"),  # type: ignore[arg-type, return-value]
        postgres=True,
        client_ca=client_ca,
    )


def url_through(front: TlsFront, postgres: str, query: str, host: str = "localhost") -> str:
    parts = urlsplit(postgres)
    return f"{parts.scheme}://postgres@{host}:{front.port}{parts.path}?{query}"


async def one(url: str) -> int:
    database = Database(url, 1, 5)
    try:
        async with database.read() as connection:
            found = await connection.scalar(text("SELECT 1"))
            return int(found or 0)
    finally:
        await database.close()


@pytest.mark.parametrize("name", ["sslmode", "ssl"])
@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
async def test_every_mode_that_can_encrypt_reaches_a_postgresql_behind_tls(
    mode: str, name: str, postgres_url: str, authority: Authority
) -> None:
    root = f"&sslrootcert={authority.ca}" if mode.startswith("verify") else ""
    with front_of(postgres_url, authority) as front:
        assert await one(url_through(front, postgres_url, f"{name}={mode}{root}&application_name=x")) == 1
        assert front.encrypted == 1


@pytest.mark.parametrize(
    ("query", "host"),
    [
        ("sslmode=disable", "localhost"),
        ("sslmode=verify-full&sslrootcert={ca}", "127.0.0.1"),
        ("sslmode=verify-ca&sslrootcert={other}", "localhost"),
        ("sslmode=verify-full&sslrootcert=system", "localhost"),
        ("sslmode=require&sslrootcert={other}", "localhost"),
    ],
)
async def test_what_the_mode_forbids_is_no_connection_and_no_traceback(
    query: str, host: str, postgres_url: str, authority: Authority, stranger: Authority
) -> None:
    with front_of(postgres_url, authority) as front:
        url = url_through(front, postgres_url, query.format(ca=authority.ca, other=stranger.ca), host)
        with pytest.raises(StoreUnavailable):
            await one(url)


async def test_a_name_that_is_not_the_servers_is_fine_where_only_its_authority_counts(
    postgres_url: str, authority: Authority
) -> None:
    with front_of(postgres_url, authority) as front:
        query = f"sslmode=verify-ca&sslrootcert={authority.ca}"
        assert await one(url_through(front, postgres_url, query, "127.0.0.1")) == 1


async def test_a_client_shows_its_certificate(postgres_url: str, authority: Authority) -> None:
    certificate, key = authority.issue("tollkeeper")
    with front_of(postgres_url, authority, client_ca=authority.ca) as front:
        query = f"sslmode=verify-full&sslrootcert={authority.ca}&sslcert={certificate}&sslkey={key}"
        assert await one(url_through(front, postgres_url, query)) == 1
        with pytest.raises(StoreUnavailable):
            await one(url_through(front, postgres_url, f"sslmode=verify-full&sslrootcert={authority.ca}"))


async def test_caches_of_statements_can_be_switched_off_for_a_pooler(postgres_url: str, authority: Authority) -> None:
    query = "sslmode=require&statement_cache_size=0&prepared_statement_cache_size=0&channel_binding=prefer"
    with front_of(postgres_url, authority) as front:
        assert await one(url_through(front, postgres_url, query)) == 1


# -- Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_redis(redis_server: RedisServer, authority: Authority) -> Iterator[TlsFront]:
    with TlsFront(
        authority.issue("localhost"),
        lambda: asyncio.open_connection("127.0.0.1", redis_server.port),  # type: ignore[arg-type, return-value]
    ) as front:
        yield front


async def pinged(url: str) -> bool:
    connection = open_servers(url, 2, lambda _reached: None, lambda _moved: None).of[0]
    connection.start()
    try:
        async with asyncio.timeout(2):
            while not connection.ready:
                await asyncio.sleep(0.01)
        return bool(await connection.call("PING") == b"PONG")
    except TimeoutError:
        return False
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("host", "query", "reached"),
    [
        ("localhost", "ssl_ca_certs={ca}", True),
        ("127.0.0.1", "ssl_ca_certs={ca}&ssl_check_hostname=false", True),
        ("127.0.0.1", "ssl_cert_reqs=none", True),
        ("127.0.0.1", "ssl_ca_certs={ca}", False),
        ("localhost", "ssl_ca_certs={other}", False),
        ("localhost", "", False),
    ],
)
async def test_both_connections_to_redis_keep_the_fields_of_tls(
    host: str, query: str, reached: bool, tls_redis: TlsFront, authority: Authority, stranger: Authority
) -> None:
    url = f"rediss://{host}:{tls_redis.port}/0?{query.format(ca=authority.ca, other=stranger.ca)}"
    assert await pinged(url) is reached
    at_start = check_redis(settings(redis={"url": url, "timeout_seconds": 2.0}))
    if reached:
        await at_start
    else:
        with pytest.raises(StoreUnavailable):
            await at_start


async def test_a_redis_that_forgets_is_refused_through_tls_too(tls_redis: TlsFront, authority: Authority) -> None:
    url = f"rediss://localhost:{tls_redis.port}/0?ssl_ca_certs={authority.ca}"
    async with asyncio.timeout(10):
        await check_redis(settings(redis={"url": url, "timeout_seconds": 5.0}))
    with pytest.raises(ConfigError, match="appendonly"):
        await _without_aof(url)


async def _without_aof(url: str) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    await client.config_set("appendonly", "no")
    await client.aclose()
    await check_redis(settings(redis={"url": url, "timeout_seconds": 5.0}))


def in_front_of(port: int, authority: Authority) -> TlsFront:
    """TLS before a server of Redis; its certificate is for 127.0.0.1 as well, as Sentinels and clusters name it."""
    return TlsFront(
        authority.issue("localhost", "127.0.0.1"),
        lambda: asyncio.open_connection("127.0.0.1", port),  # type: ignore[arg-type, return-value]
    )


@contextlib.contextmanager
def cluster_behind_tls(folder: Path, authority: Authority) -> Iterator[tuple[str, list[TlsFront]]]:
    """A cluster of one node with every slot, that names its TLS address; yields its URL without fields."""
    port = port_with_bus()
    with in_front_of(port, authority) as front:
        options = ("--cluster-enabled", "yes", "--requirepass", PASSWORD, "--cluster-announce-port", str(front.port))
        node = RedisServer(folder / "node", port=port, extra=(*options, "--cluster-announce-ip", "127.0.0.1"))
        node.start()
        ask(node, "CLUSTER", "ADDSLOTS", *range(SLOTS))
        wait_until(lambda: b"cluster_state:ok" in ask(node, "CLUSTER", "INFO"), 10, "the cluster is whole")
        yield f"rediss+cluster://:{quote(PASSWORD, safe='')}@localhost:{front.port}/?", [front]
        node.kill()


@contextlib.contextmanager
def sentinel_behind_tls(folder: Path, authority: Authority) -> Iterator[tuple[str, list[TlsFront]]]:
    """A primary, and a Sentinel that names its TLS address; yields their URL with the Sentinel's password."""
    server = RedisServer(folder / "server", extra=("--requirepass", PASSWORD))
    server.start()
    with in_front_of(server.port, authority) as primary:
        group = SentinelGroup(folder)
        group.start_sentinel(primary.port)
        with in_front_of(group.ports[0], authority) as sentinel:
            hosts = f"rediss+sentinel://:{quote(PASSWORD, safe='')}@localhost:{sentinel.port}/{SERVICE}/0"
            yield f"{hosts}?sentinel_password={quote(SENTINEL_PASSWORD, safe='')}&", [sentinel, primary]
        group.stop()
    server.kill()


@pytest.mark.served
@pytest.mark.parametrize("behind_tls", [cluster_behind_tls, sentinel_behind_tls])
async def test_nodes_and_sentinels_are_reached_by_tls_and_password_alone(
    behind_tls: Callable[[Path, Authority], contextlib.AbstractContextManager[tuple[str, list[TlsFront]]]],
    folder: Path,
    authority: Authority,
    stranger: Authority,
) -> None:
    with behind_tls(folder, authority) as (url, fronts):
        trusting = f"{url}ssl_ca_certs={authority.ca}"
        await check_redis(settings(redis={"url": trusting, "timeout_seconds": 2.0}))
        books = await open_books(folder, trusting)
        account = await books.account(1_000)
        assert isinstance(await books.store.hold(request("r1", account, 600)), Held)
        assert await books.store.settle("r1", account, Millicredits(250), record("r1", account)) == Settled(
            250, 0, 750, 0
        )
        await close_books(books)
        assert all(front.encrypted for front in fronts)
        for wrong in (
            f"{url}ssl_ca_certs={stranger.ca}",
            trusting.replace(quote(PASSWORD, safe=""), "guessed"),
            trusting.replace("rediss+", "redis+").replace("ssl_ca_certs", "no_ca"),
        ):
            with pytest.raises(StoreUnavailable):
                await check_redis(settings(redis={"url": wrong, "timeout_seconds": 2.0}))
            servers = open_servers(wrong, 2, lambda _reached: None, lambda _moved: None)
            servers.start()
            await asyncio.sleep(0.3)
            assert not servers.any_ready
            await servers.close()


# -- the whole ------------------------------------------------------------------------------------------------------


def test_a_server_with_both_stores_behind_tls_serves_a_paid_call(
    make_tollkeeper: object, empty_postgres: str, tls_redis: TlsFront, authority: Authority, sandbox: Sandbox
) -> None:
    with front_of(empty_postgres, authority) as front:
        query = f"sslmode=verify-full&sslrootcert={authority.ca}"
        server: Tollkeeper = make_tollkeeper(  # type: ignore[operator]
            TOLLKEEPER_DATABASE__URL=url_through(front, empty_postgres, query),
            TOLLKEEPER_REDIS__URL=f"rediss://localhost:{tls_redis.port}/0?ssl_ca_certs={authority.ca}",
        )
        assert server.cli("check-config")["ok"] is True
        server.start()
        account = new_customer(server, 100_000)
        assert account.chat(max_tokens=5).status_code == 200
        assert server.cli("reconcile")["ok"] is True
        assert front.encrypted
        assert front.plain == 0
        server.stop()
