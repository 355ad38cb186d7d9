"""Secrets and calls of browser voice, in both databases."""

from sqlalchemy import update

from billing.ledger.accounts import Accounts
from billing.ledger.objects.realtime_calls import MOST_CALLS, OpenedSecret, RealtimeCalls
from billing.storage.database import now_ms
from billing.storage.tables.realtime import realtime_calls, realtime_secrets
from tests.support.stores import Books


async def test_a_secret_opens_calls_until_it_expires_or_is_used_up(sql: Books) -> None:
    calls, account = RealtimeCalls(sql.database), await Accounts(sql.database).create("test")
    secret, expires_at = await calls.mint(account, "digest", '{"model":"x"}', 60_000)
    assert secret.startswith("ek_")
    assert 0 < expires_at - now_ms() <= 60_000
    opened = [await calls.open(secret) for _ in range(MOST_CALLS)]
    assert opened == [OpenedSecret(account, "digest", '{"model":"x"}')] * MOST_CALLS
    assert await calls.open(secret) is None
    assert await calls.open("ek_of_nobody") is None
    other, _ = await calls.mint(account, "digest", "{}", 60_000)
    async with sql.database.write() as connection:
        await connection.execute(update(realtime_secrets).values(expires_at=now_ms() - 1))
    assert await calls.open(other) is None


async def test_a_call_has_one_owner_and_is_abandoned_without_its_lease(sql: Books) -> None:
    calls, accounts = RealtimeCalls(sql.database), Accounts(sql.database)
    account, stranger = await accounts.create("test"), await accounts.create("stranger")
    assert await calls.begin("rtc_1", account, 60_000)
    assert not await calls.begin("rtc_1", stranger, 60_000)
    assert await calls.owner("rtc_1") == account
    assert await calls.owner("rtc_2") is None
    assert await calls.abandoned() == []
    async with sql.database.write() as connection:
        await connection.execute(update(realtime_calls).values(leased_until=now_ms() - 1))
    assert await calls.abandoned() == ["rtc_1"]
    await calls.renew(["rtc_1"], 60_000)
    assert await calls.abandoned() == []
    assert await calls.ended(["rtc_1"]) == []
    await calls.end("rtc_1")
    assert await calls.ended(["rtc_1", "rtc_2"]) == ["rtc_1"]
    await calls.renew(["rtc_1"], -1)
    assert await calls.abandoned() == []
    assert await calls.owner("rtc_1") == account
