"""Several machines that serve on the same Redis and PostgreSQL: each a service of its own, with its own folder."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.servers import Account, RedisServer, Sandbox, Tollkeeper, postgres, start_sandbox

LEASE_SECONDS = 6
"""Long enough for a process to renew in time on a machine that is busy with others."""


class Stores(NamedTuple):
    """What the machines share, by port or socket: Redis, PostgreSQL and the simulator of OpenAI."""

    redis: RedisServer
    sql_socket: Path
    sandbox: Sandbox

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a machine that reaches them all by itself."""
        host = self.sql_socket.parent
        return {
            "TOLLKEEPER_REDIS__URL": self.redis.url,
            "TOLLKEEPER_DATABASE__URL": f"postgresql+asyncpg://postgres:@/postgres?host={host}",
            "TOLLKEEPER_UPSTREAM__BASE_URL": self.sandbox.url,
        }


@contextlib.contextmanager
def shared_stores(folder: Path) -> Iterator[Stores]:
    """Run what the machines share."""
    redis, sandbox = RedisServer(folder / "redis"), start_sandbox()
    try:
        redis.start()
        with postgres(folder / "pg"):
            yield Stores(redis, folder / "pg" / ".s.PGSQL.5432", sandbox)
    finally:
        redis.kill()
        sandbox.stop()


@contextlib.contextmanager
def host(folder: Path, environment: Mapping[str, str], **of_this_start: str) -> Iterator[Tollkeeper]:
    """Serve as one machine: a worker and its jobs."""
    folder.mkdir()
    own = {
        "TOLLKEEPER_LISTEN__WORKERS": "1",
        "TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": str(LEASE_SECONDS),
        "TOLLKEEPER_LOG__ACCESS": "false",
    }
    server = Tollkeeper(folder, {**own, **environment})
    try:
        yield server.start(**of_this_start)
    finally:
        server.kill()


def at(server: Tollkeeper, account: Account) -> Account:
    """The same customer, who calls another machine."""
    return Account(server, account.account_id, account.api_key)
