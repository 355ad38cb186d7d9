"""What is said of end users, and the tokens of browsers and devices, in both databases."""

import asyncio

import msgspec
import pytest
from sqlalchemy import select, update

from billing.ledger.accounts import KeyBudget, KeyRules, TokenTerms, hash_key
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.access_tokens import AccessTokens, TokenRequest
from billing.ledger.customers.end_users import EndUserChange, EndUsers
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import AccountClosed, InvalidDetails, KeyNotFound
from billing.storage.database import now_ms
from billing.storage.tables.core import end_users, usage
from billing.storage.tables.portal import access_tokens, token_origins
from tests.support.stores import Books, record, request

ADA = Who("ada", "owner")
DAY = 86_400_000
A_DAY = (KeyBudget(Millicredits(5), "day"),)
PAGE = "https://app.example.com"


async def test_a_wallet_is_an_account_in_the_bucket_of_the_other_and_is_made_once(sql: Books) -> None:
    users, wallets = EndUsers(sql.database), list[str]()
    for number in range(4):
        account = await sql.accounts.create(f"a{number}")
        first, new = await users.put(account, "anna", EndUserChange(wallet=True), ADA)
        again, not_new = await users.put(account, "anna", EndUserChange(budgets=A_DAY, wallet=True), ADA)
        assert (new, not_new, again.wallet_id) == (True, False, first.wallet_id)
        assert bucket_of(again.wallet_id) == bucket_of(account)
        assert (await sql.accounts.get(again.wallet_id)).name == "anna"
        wallets.append(again.wallet_id)
    with pytest.raises(InvalidDetails):
        await users.remove(account, "anna", ADA)
    await sql.accounts.close(wallets[-1], ADA)
    other, _ = await users.put(account, "anna", EndUserChange(wallet=True), ADA)  # the closed one is left
    assert other.wallet_id not in wallets


async def test_who_is_said_something_of_first_makes_the_account_ask_and_a_change_keeps_the_rest(sql: Books) -> None:
    account, users = await sql.accounts.create("Acme"), EndUsers(sql.database)
    _, secret = await sql.accounts.create_key(account, KeyRules())
    key = await sql.accounts.find_key(hash_key(secret))
    assert key is not None
    assert key.users is None
    await users.put(account, "anna", EndUserChange(budgets=A_DAY), ADA)
    key = await sql.accounts.find_key(hash_key(secret))
    assert key is not None
    assert key.users is not None
    assert key.users.budgets == ()
    rules = await users.set_rules(account, ADA, A_DAY)
    assert await users.set_rules(account, ADA, required=True) == rules._replace(required=True)
    await users.put(account, "anna", EndUserChange(blocked=True), ADA)
    found = await users.find(account, "anna")
    assert found is not None
    assert (found.blocked, [one.limit for one in found.budgets]) == (True, [5])
    assert await users.find(account, "nobody") is None
    told = msgspec.json.encode([row._asdict() for row in await AuditLog(sql.database).newest(20)])
    assert b"anna" not in told
    assert told.count(b"end-user.update") == 2


async def test_erasing_an_account_takes_the_names_of_its_end_users(sql: Books) -> None:
    account, users = await sql.accounts.create("Acme"), EndUsers(sql.database)
    wallet, _ = await users.put(account, "anna", EndUserChange(wallet=True), ADA)
    for charge_id, payer in (("r1", account), ("r2", wallet.wallet_id)):
        await sql.correct(payer, 1_000)
        await sql.store.hold(request(charge_id, payer, 100))
        row = record(charge_id, payer, end_user="anna")
        await sql.store.settle(charge_id, payer, Millicredits(10), row)
    assert await sql.flush() == 2
    await sql.accounts.close(account, ADA)
    with pytest.raises(AccountClosed):
        await users.put(account, "bert", EndUserChange(), ADA)
    await sql.accounts.erase(account, ADA)
    async with sql.database.read() as connection:
        assert (await connection.execute(select(end_users))).all() == []
        labels = (await connection.execute(select(usage.c.account_id, usage.c.end_user))).all()
        assert {row[0]: row[1] for row in labels} == {account: "", wallet.wallet_id: ""}
    assert (await sql.accounts.get(wallet.wallet_id)).name != "anna"


async def test_a_token_is_found_by_its_hash_as_what_it_may_do_and_is_gone_a_day_after_its_end(sql: Books) -> None:
    account, tokens = await sql.accounts.create("Acme"), AccessTokens(sql.database)
    terms = TokenTerms("anna", (PAGE,), buys=True)
    row, secret = await tokens.mint(account, TokenRequest(5, terms, ("gpt-4o*",), Millicredits(70)), ADA)
    found = await tokens.find(hash_key(secret))
    assert found is not None
    assert (found.key_id, found.account_id, found.token) == (row.id, account, terms)
    assert (found.rules.models, found.rules.spend_limit, found.rules.spend_period) == (("gpt-4o*",), 70, "total")
    assert found.users is not None
    assert await tokens.origins() == {PAGE}
    long = TokenRequest(1_440, TokenTerms("", (PAGE, "http://localhost:3000")))
    await asyncio.gather(*(tokens.mint(account, long, ADA) for _ in range(4)))
    async with sql.database.read() as connection:
        until = (await connection.execute(select(token_origins.c.until).where(token_origins.c.origin == PAGE))).scalar()
    assert until is not None
    assert until > now_ms() + DAY - 60_000  # as long as the longest of them
    await tokens.mint(account, TokenRequest(1, TokenTerms("", (PAGE,))), ADA)
    async with sql.database.read() as connection:
        shorter = (
            await connection.execute(select(token_origins.c.until).where(token_origins.c.origin == PAGE))
        ).scalar()
    assert shorter is not None
    assert shorter >= until
    await tokens.revoke(row.id, ADA, "over")
    with pytest.raises(KeyNotFound):
        await tokens.revoke(row.id, ADA)
    listed = await tokens.listed(account, 4)
    rest = await tokens.listed(account, 10, (listed[-1].created_at, listed[-1].id))
    assert len({one.id for one in listed + rest}) == len(listed) + len(rest) == 6
    async with sql.database.write() as connection:
        long_ago = now_ms() - DAY - 1
        await connection.execute(update(access_tokens).where(access_tokens.c.id == row.id).values(expires_at=long_ago))
        await connection.execute(update(token_origins).values(until=long_ago))
    assert await tokens.origins() == frozenset()
    await tokens.mint(account, TokenRequest(1), ADA)
    assert await tokens.find(hash_key(secret)) is None
    async with sql.database.read() as connection:
        assert (await connection.execute(select(token_origins))).all() == []
