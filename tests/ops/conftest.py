"""`sql`: a migrated database on SQLite and on PostgreSQL; `pair`: two workers on Redis that follow a proxy.toml of their own."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.billing.stores import Books, close_books, open_books
from tests.support.servers import RedisServer, Sandbox, Tollkeeper


@pytest.fixture(params=["sqlite", "postgresql"])
async def sql(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Books]:
    url = request.getfixturevalue("fresh_postgres") if request.param == "postgresql" else ""
    opened = await open_books(folder, "", url)
    yield opened
    await close_books(opened)


@pytest.fixture(scope="module")
def pair(
    new_folder: Callable[[str], Path], session_sandbox: Sandbox, request: pytest.FixtureRequest
) -> Iterator[Tollkeeper]:
    """Two workers and a jobs process on Redis."""
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
