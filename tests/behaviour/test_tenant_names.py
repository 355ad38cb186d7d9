"""Names that the upstream sees instead of customers' own: no upgrade and no rotation of a key changes one."""

import hashlib
import hmac
import lzma
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import ROOT, UPSTREAM_KEY, Account, Sandbox, Serve, Tollkeeper, start_sandbox

MADE = ROOT / "tests" / "samples" / "database_of_0_1_0"
OTHER_KEY = "sk-canary-after-the-rotation"


@pytest.fixture
def rotated() -> Iterator[Sandbox]:
    """The same upstream, after its key was changed."""
    upstream = start_sandbox("--api-key", OTHER_KEY)
    yield upstream
    upstream.stop()


def name_at(upstream: Sandbox, account: Account) -> str:
    answer = account.chat(user="alice")
    assert answer.status_code == 200, answer.text
    (row,) = upstream.record(clientRequestId=answer.headers["x-request-id"])
    name: str = row["requestBody"]["user"]
    return name


def with_rotated_key(server: Tollkeeper, upstream: Sandbox) -> Tollkeeper:
    server.stop()
    server.environment |= {"TOLLKEEPER_UPSTREAM__BASE_URL": upstream.url, "OPENAI_API_KEY": OTHER_KEY}
    return server.start()


def test_an_installation_from_before_keeps_its_names(
    make_tollkeeper: Serve, sandbox: Sandbox, rotated: Sandbox
) -> None:
    server = make_tollkeeper()
    ledger = server.folder / "var" / "tollkeeper.db"
    ledger.parent.mkdir()
    ledger.write_bytes(lzma.decompress((MADE / "ledger.db.xz").read_bytes()))
    server.cli("migrate")
    account = server.start().account("10")
    # as 0.1.0 made it
    key = hmac.digest(UPSTREAM_KEY.encode(), b"tollkeeper tenant identifiers 1", hashlib.sha256)
    before = "tk_" + hmac.new(key, f'{account.account_id}\0"alice"'.encode(), hashlib.sha256).hexdigest()[:40]
    assert name_at(sandbox, account) == before
    with_rotated_key(server, rotated)
    assert name_at(rotated, account) == before


def test_the_names_of_a_new_installation_are_its_own_and_outlive_the_key(
    make_tollkeeper: Serve, sandbox: Sandbox, rotated: Sandbox
) -> None:
    server = make_tollkeeper().start()
    account = server.account("10")
    before = name_at(sandbox, account)
    with_rotated_key(server, rotated)
    assert name_at(rotated, account) == before
    (kept,) = secrets_in(server.folder / "var" / "tollkeeper.db")
    assert kept not in server.log()


def secrets_in(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        return [row[0] for row in database.execute("SELECT value FROM installation_secrets")]
