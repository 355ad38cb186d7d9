"""Fixtures: every server is real. `stack` is the whole product over each store; see support/servers.py."""

import atexit
import contextlib
import gc
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import certifi
import pytest

from tests.support.live import Live, run_sql, start_bank, stripe_environment
from tests.support.redis_groups import RedisCluster, started
from tests.support.schema import in_thread, migrated
from tests.support.servers import (
    MAY_SERVE,
    RedisServer,
    Sandbox,
    Serve,
    Tollkeeper,
    free_port,
    postgres,
    start_sandbox,
)
from tests.support.shop import Shop, open_shop
from tests.support.stores import Books, close_books, open_books

_numbers = itertools.count()

DAY_SECONDS, LAST_SECONDS = 86_400, 20
MEMORY, ROOM_BYTES = Path("/dev/shm"), 4 * 2**30
GC_THRESHOLDS = (50_000, 20, 50)
"""Nine thousand tests are no garbage: looking for some among them took a third of what collecting them takes."""


_SERVERS = frozenset({"postgres_url", "session_sandbox", "redis_server", "redis_cluster", "live", "stack"})
"""Fixtures that start a process; whatever asks for one of them, by whatever way, is marked `served`."""
_SERVED_BY_PARAMETER = {"sql": ("postgresql",), "books": ("redis", "cluster")}
"""Fixtures that start a process for some of their parameters only."""


_SLOW = frozenset({"shop", "page"})
"""Fixtures of a whole shop, a ledger and a made-up Stripe in this process: flows of a purchase, of a second or so each."""


_SERVED_FOLDERS = ("tests/behaviour/", "tests/browser/", "tests/clients/", "tests/faults/", "tests/sandbox/")
"""Whatever stands here is served, or starts one by its own ways."""


def pytest_configure() -> None:
    """Keep what tests write in memory where there is room for it.

    On a disk every commit of every database waits for all the others'; what a killed process has written is in memory
    either way.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    _trust_one_authority()
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it is looked up anew


def _trust_one_authority() -> None:
    """Have httpx and the SDKs read one certificate for each client that a test makes, in place of 140 (22 ms of CPU).

    Tests speak plain HTTP to their own servers, or name the authority that they made.
    """
    handle, place = tempfile.mkstemp(suffix=".pem")
    first, end, _ = certifi.contents().partition("-----END CERTIFICATE-----\n")
    os.write(handle, (first + end).encode())
    os.close(handle)
    atexit.register(os.remove, place)
    certifi.where = lambda: place
    if "SSL_CERT_FILE" in os.environ:  # which they would read before it
        os.environ["SSL_CERT_FILE"] = place


def pytest_collection_finish() -> None:
    """Leave what was collected out of every later look for garbage."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Leave what is still there to the end of the process: pytest looks for garbage twice more, in 0.9 s of CPU."""
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what is wholly served where nothing served is asked for: importing browsers and SDKs takes seconds."""
    inside = f"{collection_path.relative_to(config.rootpath).as_posix()}/"
    return True if "not served" in config.option.markexpr and inside in _SERVED_FOLDERS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server: `make test-fast` runs the rest."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        by_parameter = any(parameters.get(name) in values for name, values in _SERVED_BY_PARAMETER.items())
        by_folder = item.nodeid.startswith(_SERVED_FOLDERS)
        if by_folder or by_parameter or not _SERVERS.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.served)
        if not _SLOW.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let only what is marked start servers; and begin no test in the last seconds of a day (UTC), as one that counts by
    days would see two.
    """
    os.environ[MAY_SERVE] = "yes" if item.get_closest_marker("served") else "no"
    left = DAY_SECONDS - time.time() % DAY_SECONDS
    if left < LAST_SECONDS:
        time.sleep(left)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short-pathed folder of the test's own (PostgreSQL's socket path is limited to 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="tk"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tks"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def new_folder(session_folder: Path) -> Callable[[str], Path]:
    """An empty folder of about this name, for a fixture that outlives a test.

    Never the same one twice: xdist may run a module's tests apart, and set its fixtures up once more for the rest.
    """

    def new(name: str) -> Path:
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=session_folder))
        path.chmod(0o755)
        return path

    return new


@pytest.fixture(scope="session")
def postgres_url(session_folder: Path) -> Iterator[str]:
    """One PostgreSQL server for the session, with its default database."""
    with postgres(session_folder / "pg") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The name of a migrated database on that server, to make others from."""
    name = f"template_{free_port()}"
    _on_postgres(postgres_url, f"CREATE DATABASE {name}")
    in_thread(migrated(postgres_url.replace("/postgres?", f"/{name}?"), served=False))
    return name


@pytest.fixture
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """A database of the test's own without a schema."""
    with _database_on(postgres_url, "template1") as url:
        yield url


@pytest.fixture
def fresh_postgres(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with _database_on(postgres_url, postgres_template) as url:
        yield url


@contextlib.contextmanager
def _database_on(postgres_url: str, template: str) -> Iterator[str]:
    name = f"t{next(_numbers)}_{free_port()}"
    _on_postgres(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres_url.replace("/postgres?", f"/{name}?")
    _on_postgres(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _on_postgres(postgres_url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(postgres_url.replace("postgresql+asyncpg://", "postgresql://"))
        await connection.execute(statement)
        await connection.close()

    in_thread(run())


@pytest.fixture(scope="session")
def session_sandbox() -> Iterator[Sandbox]:
    sandbox = start_sandbox()
    yield sandbox
    sandbox.stop()


@pytest.fixture
def sandbox(session_sandbox: Sandbox) -> Sandbox:
    """The upstream, its record emptied."""
    session_sandbox.clear()
    return session_sandbox


@pytest.fixture
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, appendfsync always."""
    server = RedisServer(folder / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(new_folder: Callable[[str], Path]) -> Iterator[RedisCluster]:
    """Six nodes for the session."""
    cluster = RedisCluster(new_folder("cluster"))
    with started(cluster):
        yield cluster


@pytest.fixture
def emptied_cluster(redis_cluster: RedisCluster) -> RedisCluster:
    """Six nodes without a key; whole, whatever was done to them before."""
    redis_cluster.wait_whole()
    redis_cluster.clear()
    return redis_cluster


@pytest.fixture
def make_tollkeeper(folder: Path, sandbox: Sandbox) -> Iterator[Serve]:
    """Make a Tollkeeper in a folder of its own (not started); stopped at the end. Arguments are environment variables."""
    made: list[Tollkeeper] = []

    def make(**environment: str) -> Tollkeeper:
        home = folder / f"tk{len(made)}"
        home.mkdir()
        server = Tollkeeper(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url, **environment})
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def embedded(make_tollkeeper: Serve) -> Tollkeeper:
    """A running Tollkeeper with the embedded store and SQLite."""
    return make_tollkeeper().start()


@pytest.fixture
def on_redis(make_tollkeeper: Serve, redis_server: RedisServer) -> Tollkeeper:
    """A running Tollkeeper with two workers on Redis, and SQLite."""
    return make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2").start()


@pytest.fixture(params=["embedded", "redis"])
def stack(request: pytest.FixtureRequest) -> Tollkeeper:
    """The whole product, over each balance store in turn."""
    served: Tollkeeper = request.getfixturevalue("embedded" if request.param == "embedded" else "on_redis")
    return served


@pytest.fixture(scope="module")
def pair(
    new_folder: Callable[[str], Path], session_sandbox: Sandbox, request: pytest.FixtureRequest
) -> Iterator[Tollkeeper]:
    """Two workers and a jobs process on Redis, that follow a proxy.toml of their own."""
    home = new_folder(f"pair-{request.module.__name__.rpartition('.')[2]}")
    redis = RedisServer(home / "redis")
    redis.start()
    (home / "proxy.toml").write_text("# nothing is changed yet\n")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_REDIS__URL": redis.url,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
    }
    server = Tollkeeper(home, environment).start()
    yield server
    server.kill()
    redis.kill()


@pytest.fixture(scope="module")
def live(new_folder: Callable[[str], Path], session_sandbox: Sandbox, postgres_url: str) -> Iterator[Live]:
    """What preflight, smoke and the review commands are run against."""
    home = new_folder("launch")
    redis = RedisServer(home / "redis")
    redis.start()
    name = f"launch_{free_port()}"
    run_sql(postgres_url, f"CREATE DATABASE {name}")
    database = postgres_url.replace("/postgres?", f"/{name}?")
    bank, process = start_bank()
    admin_port = str(free_port())
    environment = {
        **stripe_environment(bank),
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_ADVANCED__OPENAI_COSTS_URL": f"{session_sandbox.url}/organization/costs",
        "OPENAI_ADMIN_KEY": "sk-admin-sandbox",
        "TOLLKEEPER_REDIS__URL": redis.url,
        "TOLLKEEPER_DATABASE__URL": database,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
        "TOLLKEEPER_LISTEN__ADMIN_PORT": admin_port,
        "TOLLKEEPER_LISTEN__MAX_CONNECTIONS": "64",
        "TOLLKEEPER_UPSTREAM__MAX_CONNECTIONS": "64",
        "TOLLKEEPER_BILLING__MODEL_ALLOWLIST": '["gpt-6-luna", "gpt-4o-mini"]',
        "TOLLKEEPER_BILLING__MARKUP": "1.2",
    }
    server = Tollkeeper(home, environment).start()
    world = Live(server, session_sandbox, redis, bank, database)
    world.endpoint()
    server.wait_first_sweep()
    server.cli("admin", "create", "the owner", "--role", "owner")
    yield world
    server.kill()
    process.kill()
    process.communicate()
    redis.kill()
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["embedded", "redis"])
async def books(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    """Each balance store in turn, over SQLite; where a test asks for it, also `cluster`."""
    redis_url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        redis_url = server.url
    elif request.param == "cluster":
        redis_url = request.getfixturevalue("emptied_cluster").url
    opened = await open_books(folder, redis_url)
    yield opened
    await close_books(opened)


@pytest.fixture(params=["sqlite", "postgresql"])
async def sql(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    """A migrated database with a ledger and an embedded balance store, on SQLite and on PostgreSQL."""
    url = request.getfixturevalue("fresh_postgres") if request.param == "postgresql" else ""
    opened = await open_books(folder, "", url)
    yield opened
    await close_books(opened)


@pytest.fixture
def shop(sql: Books) -> Shop:
    """Money in over each database."""
    return open_shop(sql)
