"""Promo codes on both databases: K uses are K redemptions, each account once, within their term, audited."""

import asyncio
from collections import Counter

import pytest

from billing.accounting.reconcile import reconcile
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.credits.promos import BadPromo, PromoNotFound, PromoOver, Promos, PromoTaken, PromoTerms, read_code
from billing.ledger.notices import NoticeQueue
from billing.money.errors import AccountClosed
from billing.storage.database import now_ms
from tests.support.credits import DAY_MS, left
from tests.support.stores import Books

ADA = Who("ada", "finance")


def promos(sql: Books) -> Promos:
    return Promos(sql.database, NoticeQueue(sql.database, wanted=True))


@pytest.mark.parametrize("uses", [0, 1, 7])
async def test_so_many_redeem_a_code_as_it_has_uses_however_many_try_at_once(sql: Books, uses: int) -> None:
    code, wanted = promos(sql), 12
    await code.add("RACE", PromoTerms(250, uses or 1), ADA, "test")
    if not uses:
        await code.end("RACE", ADA, "test")
    accounts = [await sql.account() for _ in range(wanted)]

    async def ask(account: str) -> str:
        try:
            return "again" if (await code.redeem(account, "race", ADA)).again else "new"
        except PromoOver as over:
            return "used up" if over.used_up else "over"

    found = Counter(await asyncio.gather(*(ask(account) for account in accounts * 2)))
    balances = [(await sql.ledger.posted(account)).balance for account in accounts]
    assert sorted(balances) == [0] * (wanted - uses) + [250] * uses
    assert found["new"] == uses
    assert sum(found.values()) == 2 * wanted
    (row,) = await code.listed()
    assert row.uses == uses
    assert await reconcile(sql.database, None) == []


async def test_an_account_has_a_code_once_and_hears_the_same_again(sql: Books) -> None:
    code, account = promos(sql), await sql.account()
    await code.add("spring-26", PromoTerms(500, 3, credit_days=10), ADA)
    first = await code.redeem(account, " Spring-26 ", ADA)
    again = await asyncio.gather(*(code.redeem(account, "SPRING-26", ADA) for _ in range(3)))
    assert (first.again, {one.again for one in again}) == (False, {True})
    assert {(one.amount, one.expires_at) for one in again} == {(500, first.expires_at)}
    assert (await sql.ledger.posted(account)).balance == 500
    assert await left(sql, account) == {f"promo:SPRING-26:{account}": 500}
    (row,) = await sql.ledger.transfers_of(account, 10)
    assert (row.kind, row.reference_type, row.reason, row.reason_shown) == (
        "adjustment",
        "promo",
        "Promo code SPRING-26",
        True,
    )
    (listed,) = await code.listed()
    assert listed.uses == 1


async def test_terms_are_kept(sql: Books) -> None:
    code, account, now = promos(sql), await sql.account(), now_ms()
    await code.add("LATER", PromoTerms(1, starts_at=now + DAY_MS), ADA)
    await code.add("OVER", PromoTerms(1, starts_at=now - 100, ends_at=now + 300), ADA)
    await asyncio.sleep(0.35)
    for name in ("LATER", "OVER"):
        with pytest.raises(PromoOver):
            await code.redeem(account, name, ADA)
    for name in ("NONE", "", "?!"):
        with pytest.raises(PromoNotFound):
            await code.redeem(account, name, ADA)
    await sql.accounts.close(account, ADA)
    await code.add("OPEN", PromoTerms(1), ADA)
    with pytest.raises(AccountClosed):
        await code.redeem(account, "OPEN", ADA)
    assert (await sql.ledger.posted(account)).balance == 0


async def test_making_a_code_again_makes_nothing_and_with_other_terms_is_refused(sql: Books) -> None:
    code = promos(sql)
    row, new = await code.add("ONE", PromoTerms(10, 5), ADA, "why")
    assert (new, (await code.add("one", PromoTerms(10, 5), ADA))) == (True, (row, False))
    with pytest.raises(PromoTaken):
        await code.add("ONE", PromoTerms(11, 5), ADA)
    made, _ = await code.add("", PromoTerms(10), ADA)
    assert read_code(made.code) == made.code
    for bad in (PromoTerms(0), PromoTerms(1, 0), PromoTerms(1, credit_days=0), PromoTerms(1, ends_at=1)):
        with pytest.raises(BadPromo):
            await code.add("BAD", bad, ADA)
    with pytest.raises(BadPromo):
        await code.add("a b?", PromoTerms(1), ADA)
    await code.end("ONE", ADA, "enough")
    assert (await code.end("ONE", ADA, "enough")).ended_at is not None
    with pytest.raises(PromoTaken):
        await code.add("ONE", PromoTerms(10, 5), ADA)
    with pytest.raises(PromoNotFound):
        await code.end("NONE", ADA, "enough")
    audit = [(row.action, row.subject, row.reason) async for row in AuditLog(sql.database).rows()]
    assert audit == [
        ("promos.add", "ONE", "why"),
        ("promos.add", made.code, ""),
        ("promos.end", "ONE", "enough"),
    ]
