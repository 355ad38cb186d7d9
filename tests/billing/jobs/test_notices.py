"""Notices of low balances: told once per crossing, signed, tried again, finally dead."""

import asyncio
import json
from typing import Any

from sqlalchemy import text

from billing.jobs.low_balance import LowBalance
from billing.jobs.notices import NoticeDelivery
from billing.payments.stripe.signatures import verify
from tests.support.recharge import spend
from tests.support.shop import Shop


async def test_a_low_balance_is_told_once_per_crossing(shop: Shop) -> None:
    low = LowBalance(shop.books.database, shop.notices, 1_000)
    account, poor = await shop.books.account(5_000), await shop.books.account(10)
    assert await low.watch() == 0
    for _ in range(3):
        await spend(shop, account, 999)
        assert await low.watch() == 1
        assert await low.watch() == 0
        await spend(shop, account, 10)
        assert await low.watch() == 0
        await spend(shop, account, 1_000)
        assert await low.watch() == 0
    await low.set_threshold(poor, 5)
    await spend(shop, poor, 4)
    assert sum(await asyncio.gather(*(low.watch() for _ in range(4)))) == 1
    rows = await shop.notices.listing("pending", 10)
    assert len(rows) == 4
    assert {json.loads(row.payload)["data"]["thresholdMillicredits"] for row in rows} == {"1000", "5"}


async def test_notices_are_signed_retried_and_finally_dead(shop: Shop) -> None:
    low = LowBalance(shop.books.database, shop.notices, 0)
    account = await shop.books.account(10)
    await low.set_threshold(account, 5)
    await spend(shop, account, 1)
    await low.watch()
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def post(body: bytes, headers: dict[str, str]) -> str:
        seen.append((body, headers))
        return "status 500"

    for _ in range(5):
        await NoticeDelivery(shop.books.database).deliver(post, "0123456789abcdef", 3)
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE notices SET next_at = 0"))
    assert len(seen) == 3
    (row,) = await shop.notices.listing("dead", 10)
    assert row.last_error == "status 500"
    body, headers = seen[0]
    at = int(headers["tollkeeper-signature"].partition(",")[0].removeprefix("t="))
    verify(body, headers["tollkeeper-signature"], ["0123456789abcdef"], at, 300)
    told: dict[str, Any] = json.loads(body)
    assert (told["kind"], told["accountId"], told["data"]["balanceMillicredits"]) == ("balance.low", account, "1")

    async def taken(_body: bytes, _headers: dict[str, str]) -> str:
        return ""

    await shop.notices.revive(row.id)
    assert await NoticeDelivery(shop.books.database).deliver(taken, "0123456789abcdef", 3) == 1
    assert await NoticeDelivery(shop.books.database).deliver(taken, "0123456789abcdef", 3) == 0
