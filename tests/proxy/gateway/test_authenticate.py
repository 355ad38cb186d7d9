"""Keys against a real database that is altered, taken away and brought back."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from billing.ledger.accounts import Accounts, ApiKey, KeyRules
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database, now_ms
from billing.storage.migrate import current_revision, newest_revision
from proxy.gateway.admission import may_use_model
from proxy.gateway.authenticate import MAX_AGE_SECONDS, Authenticator
from proxy.web.rejections import Rejection
from tests.support.schema import lay_sqlite


class Office:
    """A database with one account and its key."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path, self.database, self.accounts = path, database, Accounts(database)
        self.asked = 0
        original = self.accounts.find_key

        async def counting(digest: str) -> ApiKey | None:
            self.asked += 1
            return await original(digest)

        self.accounts.find_key = counting  # type: ignore[method-assign]

    async def open(self, **rules: Any) -> None:
        self.account_id = await self.accounts.create("test")
        self.key_id, self.secret = await self.accounts.create_key(self.account_id, KeyRules(**rules))

    def locked(self) -> contextlib.AbstractContextManager[Any]:
        """While this is open no statement is answered: the table is not there."""

        @contextlib.contextmanager
        def away() -> Any:
            with sqlite3.connect(self.path) as other:
                other.execute("ALTER TABLE api_keys RENAME TO gone")
            try:
                yield
            finally:
                with sqlite3.connect(self.path) as other:
                    other.execute("ALTER TABLE gone RENAME TO api_keys")

        return away()


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    path = tmp_path / "keys.db"
    lay_sqlite(path)
    database = Database(f"sqlite+aiosqlite:///{path}", 1, 1.0)
    assert await current_revision(database) == newest_revision()
    yield Office(path, database)
    await database.close()


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + secret.encode())]


async def refused(authenticator: Authenticator, headers: list[tuple[bytes, bytes]]) -> Rejection:
    with pytest.raises(Rejection) as caught:
        await authenticator.authenticate(headers)
    return caught.value


async def until_refused(authenticator: Authenticator, headers: list[tuple[bytes, bytes]]) -> tuple[Rejection, float]:
    """The refusal that must come within 5 s, and after how many seconds it came; asks often, as a busy customer does."""
    started = time.monotonic()
    while time.monotonic() - started < 5:
        try:
            await authenticator.authenticate(headers)
        except Rejection as rejection:
            return rejection, time.monotonic() - started
        await asyncio.sleep(0.05)
    raise AssertionError("still accepted after 5 s")


async def test_a_key_is_known_and_asked_for_once(office: Office) -> None:
    await office.open(models=("gpt-4o",))
    authenticator = Authenticator(office.accounts, 60)
    for _ in range(200):
        found = await authenticator.authenticate(bearer(office.secret))
    assert (found.key_id, found.account_id, found.rules.models) == (office.key_id, office.account_id, ("gpt-4o",))
    assert office.asked == 1


async def test_many_that_come_at_once_after_a_start_are_one_look(office: Office) -> None:
    """Each with a look of its own waited for a turn in the pool, and the last ones were told that keys cannot be checked."""
    await office.open()
    authenticator = Authenticator(office.accounts, 60)
    first = asyncio.create_task(authenticator.authenticate(bearer(office.secret)))
    others = [asyncio.create_task(authenticator.authenticate(bearer(office.secret))) for _ in range(999)]
    await asyncio.sleep(0)
    first.cancel()  # who asked first leaves
    assert {found.key_id for found in await asyncio.gather(*others)} == {office.key_id}
    assert (office.asked, first.cancelled()) == (1, True)


async def test_a_look_that_failed_is_said_to_all_who_wait_and_made_anew(office: Office) -> None:
    await office.open()
    authenticator = Authenticator(office.accounts, 60)
    with office.locked():
        found = await asyncio.gather(*(refused(authenticator, bearer(office.secret)) for _ in range(5)))
    assert {one.code for one in found} == {"store_unavailable"}
    assert (await authenticator.authenticate(bearer(office.secret))).key_id == office.key_id


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([(b"authorization", b"")], "invalid_api_key"),
        ([(b"authorization", b"Bearer ")], "invalid_api_key"),
        ([(b"authorization", b"Basic abc")], "invalid_api_key"),
        ([(b"authorization", b"Bearer a b")], "invalid_api_key"),
        ([(b"authorization", b"Bearer \xc3\xa9")], "invalid_api_key"),
        ([(b"authorization", b"Bearer " + b"x" * 600)], "invalid_api_key"),
        ([(b"authorization", b"Bearer tk-unknown")], "invalid_api_key"),
    ],
    ids=repr,
)
async def test_what_is_no_key_is_a_401(office: Office, headers: list[tuple[bytes, bytes]], code: str) -> None:
    found = await refused(Authenticator(office.accounts, 60), headers)
    assert (found.status, found.code) == (401, code)


async def test_two_authorization_headers_are_refused_even_when_both_are_right(office: Office) -> None:
    await office.open()
    headers = bearer(office.secret)
    assert (await refused(Authenticator(office.accounts, 60), [*headers, headers[-1]])).status == 401


@pytest.mark.slow
async def test_a_revoked_key_ends_within_5_s_while_in_use(office: Office) -> None:
    await office.open()
    authenticator, headers = Authenticator(office.accounts, 60), bearer(office.secret)
    await authenticator.authenticate(headers)
    await office.accounts.revoke_key(office.key_id)
    rejection, _ = await until_refused(authenticator, headers)
    assert (rejection.status, rejection.code) == (401, "invalid_api_key")


@pytest.mark.slow
async def test_a_blocked_account_ends_within_5_s_and_comes_back(office: Office) -> None:
    await office.open()
    authenticator, headers = Authenticator(office.accounts, 60), bearer(office.secret)
    await authenticator.authenticate(headers)
    await office.accounts.set_status(office.account_id, "blocked")
    rejection, _ = await until_refused(authenticator, headers)
    assert (rejection.status, rejection.code) == (403, "account_blocked")
    await office.accounts.set_status(office.account_id, "active")
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Rejection):
                await authenticator.authenticate(headers)
                break
            await asyncio.sleep(0.05)


async def test_an_expired_key_ends_to_the_moment_although_it_is_cached(office: Office) -> None:
    await office.open(expires_at=now_ms() + 400)
    authenticator, headers = Authenticator(office.accounts, 60), bearer(office.secret)
    await authenticator.authenticate(headers)
    rejection, _ = await until_refused(authenticator, headers)
    assert (rejection.status, rejection.code) == (401, "key_expired")
    assert (b"x-should-retry", b"false") in rejection.headers()


async def test_a_revoked_and_an_unknown_key_are_told_the_same(office: Office) -> None:
    await office.open()
    await office.accounts.revoke_key(office.key_id)
    authenticator = Authenticator(office.accounts, 60)
    revoked, unknown = (
        await refused(authenticator, bearer(office.secret)),
        await refused(authenticator, bearer("tk-nobody")),
    )
    assert revoked.body() == unknown.body()


async def test_unknown_keys_do_not_push_known_ones_out(office: Office) -> None:
    await office.open()
    authenticator = Authenticator(office.accounts, 60)
    await authenticator.authenticate(bearer(office.secret))
    for number in range(50):
        await refused(authenticator, bearer(f"tk-guess-{number}"))
    asked = office.asked
    await authenticator.authenticate(bearer(office.secret))
    assert office.asked == asked


async def test_a_known_key_works_while_sql_is_away_and_an_unknown_one_is_a_503(office: Office) -> None:
    await office.open()
    authenticator, headers = Authenticator(office.accounts, 60), bearer(office.secret)
    await authenticator.authenticate(headers)
    with office.locked():
        with pytest.raises(StoreUnavailable):
            await office.accounts.find_key("x")
        # past the time that a key may be used without asking
        authenticator._cache[next(iter(authenticator._cache))].read_at -= 10
        assert (await authenticator.authenticate(headers)).key_id == office.key_id
        found = await refused(authenticator, bearer("tk-nobody"))
        assert (found.status, found.code) == (503, "store_unavailable")
        assert b"retry-after" in dict(found.headers())
    await office.accounts.revoke_key(office.key_id)
    rejection, _ = await until_refused(authenticator, headers)
    assert rejection.status == 401


async def test_a_known_key_does_not_work_for_ever_while_sql_is_away(office: Office) -> None:
    await office.open()
    authenticator, headers = Authenticator(office.accounts, 30), bearer(office.secret)
    await authenticator.authenticate(headers)
    with office.locked():
        authenticator._cache[next(iter(authenticator._cache))].read_at -= 31
        assert (await refused(authenticator, headers)).status == 503


@pytest.mark.parametrize(
    ("model", "allowlist", "own", "may"),
    [
        ("gpt-4o", ("*",), None, True),
        ("gpt-4o", ("gpt-4o",), None, True),
        ("gpt-4o-mini", ("gpt-4o",), None, False),
        ("gpt-4o-mini", ("gpt-4o*",), ("gpt-4o-*",), True),
        ("gpt-4o", ("gpt-4o*",), ("gpt-4o-*",), False),
        ("gpt-4o", ("*",), (), False),
        ("GPT-4O", ("gpt-*",), None, False),
    ],
)
def test_which_models_a_key_may_use(
    model: str, allowlist: tuple[str, ...], own: tuple[str, ...] | None, may: bool
) -> None:
    assert may_use_model(model, allowlist, own) is may


@pytest.mark.slow
async def test_requests_with_a_known_key_hardly_wait_for_a_database_that_hangs(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await office.open()
    authenticator, answers = Authenticator(office.accounts, 60), asyncio.Event()
    assert (await authenticator.authenticate(bearer(office.secret))).key_id == office.key_id
    original = office.accounts.find_key

    async def hanging(digest: str) -> ApiKey | None:
        await answers.wait()
        return await original(digest)

    monkeypatch.setattr(office.accounts, "find_key", hanging)
    await asyncio.sleep(MAX_AGE_SECONDS + 0.1)
    started = time.monotonic()
    for _ in range(50):
        assert (await authenticator.authenticate(bearer(office.secret))).key_id == office.key_id
    together = await asyncio.gather(*(authenticator.authenticate(bearer(office.secret)) for _ in range(50)))
    assert {key.key_id for key in together} == {office.key_id}
    assert time.monotonic() - started < 1.5, "they wait together, once"
    await office.accounts.revoke_key(office.key_id)
    answers.set()
    rejection, seconds = await until_refused(authenticator, bearer(office.secret))
    assert (rejection.code, seconds < 2) == ("invalid_api_key", True), "what was asked meanwhile is answered"
