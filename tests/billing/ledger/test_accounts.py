"""Accounts of an app: made once by its own id, found by anything, closed, erased. On both databases."""

import asyncio
import json

import pytest
from sqlalchemy import select, text, update

from billing.ledger.accounts import KeyRules
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.records.account_details import AccountDetails, metadata_pair
from billing.money.errors import AccountClosed, AccountNotFound, ExternalIdTaken, InvalidDetails, NotClosed
from billing.storage.tables.core import accounts, api_keys
from billing.storage.tables.payments import stripe_customers
from tests.support.shop import Shop
from tests.support.stores import Books, charge

ADA = Who("ada", "owner")


async def found(sql: Books, words: str = "", **filters: object) -> list[str]:
    rows = await AccountSearch(sql.database).find(AccountFilters(words, **filters), 100)  # type: ignore[arg-type]
    return [row.id for row in rows]


async def test_an_external_id_makes_one_account_however_often_and_fast_it_is_asked_for(sql: Books) -> None:
    details = AccountDetails("Acme", "user-7", "Ann@Acme.example", {"plan": "pro"})
    made = await asyncio.gather(*(sql.accounts.open(details, KeyRules(), ADA) for _ in range(8)))
    assert len({opened.account.id for opened in made}) == 1
    (first,) = [opened for opened in made if opened.created]
    assert [opened.secret for opened in made if not opened.created] == [None] * 7
    assert [row.id for row in await sql.accounts.keys_of(first.account.id)] == [first.key_id]
    again = await sql.accounts.open(AccountDetails("Other", "user-7"), KeyRules(), ADA)
    assert again.account == first.account
    assert (first.account.email, first.account.metadata) == ("ann@acme.example", '{"plan":"pro"}')
    rows = await AuditLog(sql.database).newest(100)
    assert [row.action for row in rows if row.action.startswith("account")] == ["account.create"]
    without = [await sql.accounts.open(AccountDetails("same name"), None) for _ in range(2)]
    assert without[0].account.id != without[1].account.id
    assert without[0].key_id is None


async def test_everything_that_somebody_holds_in_their_hand_finds_the_account(shop: Shop) -> None:
    sql = shop.books
    opened = await sql.accounts.open(
        AccountDetails("Söhne & Co_1", "crm:77", "z@b.example", {"plan": "pro%"}), KeyRules()
    )
    other = await sql.accounts.create("another")
    account, secret = opened.account.id, opened.secret or ""
    purchase = await shop.paid(account)
    await sql.ledger.post([charge(1, account)])
    (key,) = await sql.accounts.keys_of(account)
    assert other not in await found(sql, "crm:77")
    hands = [
        account,
        "crm:77",
        "CRM:7",
        "söhne",
        "Co_1",
        "Z@B.example",
        "pro%",
        key.id,
        key.hint,
        secret,
        secret[:8],
        secret[:12],
    ]
    hands += ["c1", purchase.id, purchase.session_id or "", purchase.payment_intent_id or "", purchase.customer_id]
    for words in hands:
        assert await found(sql, words) == [account], words
    for words in ("tk-", "crm:78", "Co%1", secret[:-1] + "~", "c2", "pur_1"):
        assert account not in await found(sql, words) or words == "tk-", words
    assert set(await found(sql)) >= {account, other}


async def test_filters_fit_exactly_and_pages_go_on_where_they_ended(sql: Books) -> None:
    one = await sql.accounts.open(AccountDetails("a", "x", "a@x.example", {"plan": "pro", "seat": "1"}), None)
    two = await sql.accounts.open(
        AccountDetails("b", "X", "b@x.example", {"plan": "Pro", "note": '"plan":"pro"'}), None
    )
    first, second = one.account.id, two.account.id
    assert await found(sql, external_id="x") == [first]
    assert await found(sql, email=" A@x.example ") == [first]
    assert await found(sql, metadata=(("plan", "pro"),)) == [first]
    assert await found(sql, metadata=(("plan", "pro"), ("seat", "2"))) == []
    assert await found(sql, metadata=(("note", '"plan":"pro"'),)) == [second]
    await sql.accounts.set_status(first, "blocked")
    assert await found(sql, status="blocked") == [first]
    await sql.accounts.close(second, ADA)
    assert await found(sql, status="closed") == [second]
    assert await found(sql, status="active") == []
    search, seen, before = AccountSearch(sql.database), list[str](), None
    async with sql.database.write() as connection:
        await connection.execute(update(accounts).values(created_at=5))  # all at once
    while rows := await search.find(AccountFilters(before=before), 1):
        seen.append(rows[0].id)
        before = (rows[0].created_at, rows[0].id)
    assert sorted(seen) == sorted([first, second])


async def test_a_change_takes_what_is_named_and_leaves_the_rest(sql: Books) -> None:
    account = (
        await sql.accounts.open(AccountDetails("Acme", "7", "a@b.example", {"plan": "pro", "a": "1"}), None)
    ).account
    changed = await sql.accounts.update(account.id, {"email": None, "metadata": {"plan": None, "b": "ü"}}, ADA, "moved")
    assert (changed.name, changed.external_id, changed.email) == ("Acme", "7", None)
    assert json.loads(changed.metadata or "") == {"a": "1", "b": "ü"}
    other = (await sql.accounts.open(AccountDetails("Other", "8"), None)).account
    with pytest.raises(ExternalIdTaken):
        await sql.accounts.update(other.id, {"external_id": "7"}, ADA)
    assert (await sql.accounts.update(account.id, {"metadata": None, "external_id": None}, ADA)).metadata is None
    assert (await sql.accounts.update(other.id, {"external_id": "7"}, ADA)).external_id == "7"
    with pytest.raises(AccountNotFound):
        await sql.accounts.update("acct_missing", {"name": "x"}, ADA)
    logged = json.dumps([row._asdict() for row in await AuditLog(sql.database).newest(100)])
    assert '[\\"email\\",\\"metadata\\"]' in logged
    assert "a@b.example" not in logged
    assert "Acme" not in logged


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("name", {"name": None}),
        ("name", {"name": "a\nb"}),
        ("externalId", {"external_id": " "}),
        ("externalId", {"external_id": "x" * 201}),
        ("email", {"email": "nobody"}),
        ("email", {"email": "a b@c.example"}),
        ("email", {"email": "x" * 320 + "@c.example"}),
        ("metadata", {"metadata": {"k" * 41: "v"}}),
        ("metadata", {"metadata": {"": "v"}}),
        ("metadata", {"metadata": {"k": "v" * 501}}),
        ("metadata", {"metadata": {"k": "\ud800"}}),
        ("metadata", {"metadata": {str(n): "v" for n in range(51)}}),
    ],
)
async def test_what_cannot_be_kept_is_refused(field: str, changes: dict[str, object], sql: Books) -> None:
    account = await sql.accounts.create("Acme")
    with pytest.raises(InvalidDetails) as refused:
        await sql.accounts.update(account, changes, ADA)
    assert refused.value.field == field
    assert (await sql.accounts.get(account)).name == "Acme"


async def test_metadata_is_bounded_over_all_changes(sql: Books) -> None:
    account = await sql.accounts.create("Acme")
    await sql.accounts.update(account, {"metadata": {str(n): "v" for n in range(50)}}, ADA)
    with pytest.raises(InvalidDetails):
        await sql.accounts.update(account, {"metadata": {"one": "more"}}, ADA)
    await sql.accounts.update(account, {"metadata": {"one": "more", "1": None}}, ADA)
    assert metadata_pair("a", 'x"y') == '"a":"x\\"y"'


async def test_a_closed_account_has_no_keys_gets_none_and_is_not_opened_again(sql: Books) -> None:
    opened = await sql.accounts.open(AccountDetails("Acme", "7"), KeyRules())
    account = opened.account.id
    await sql.accounts.create_key(account, KeyRules())
    link, _ = await PortalTokens(sql.database).link(account)
    await sql.ledger.grant(account, 5_000, "g", "test", "gift")  # type: ignore[arg-type]
    assert await sql.accounts.close(account, ADA, "left") == 2
    assert await sql.accounts.close(account, ADA, "again") == 0
    row = await sql.accounts.get(account)
    assert (row.status, row.posted_millicredits, row.closed_at is not None) == ("closed", 5_000, True)
    assert all(key.revoked_at for key in await sql.accounts.keys_of(account))
    assert await PortalTokens(sql.database).opens(link) is None
    for refused in (
        sql.accounts.create_key(account, KeyRules()),
        sql.accounts.set_status(account, "active"),
    ):
        with pytest.raises(AccountClosed):
            await refused
    again = await sql.accounts.open(AccountDetails("Acme", "7"), KeyRules())
    assert (again.account.id, again.account.status, again.secret) == (account, "closed", None)
    async with sql.database.read() as connection:  # whatever asks for active ones alone sees none
        assert (
            await connection.execute(select(accounts.c.status).where(accounts.c.id == account))
        ).scalar() == "blocked"


async def test_keys_that_are_made_while_their_account_is_closed_die_too(sql: Books) -> None:
    account = await sql.accounts.create("Acme")

    async def make() -> None:
        try:
            await sql.accounts.create_key(account, KeyRules())
        except AccountClosed:
            return

    await asyncio.gather(*(make() for _ in range(4)), sql.accounts.close(account, ADA), *(make() for _ in range(4)))
    async with sql.database.read() as connection:
        assert (await connection.execute(select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None)))).all() == []


async def test_erasing_replaces_what_is_personal_wherever_it_stands_and_leaves_the_books(shop: Shop) -> None:
    sql = shop.books
    details = AccountDetails("Ann Personal", "ext-personal", "ann@personal.example", {"k": "personal"})
    account = (await sql.accounts.open(details, KeyRules(), ADA)).account.id
    await shop.paid(account)
    async with sql.database.write() as connection:
        card = update(stripe_customers).where(stripe_customers.c.account_id == account)
        await connection.execute(
            card.values(payment_method_id="pm_personal", method_brand="personal", method_last4="ersonal")
        )
    with pytest.raises(NotClosed):
        await sql.accounts.erase(account, ADA, "asked for")
    await sql.accounts.close(account, ADA)
    before = await sql.ledger.transfers_of(account, 50)
    await sql.accounts.erase(account, ADA, "asked for")
    await sql.accounts.erase(account, ADA, "asked for")
    row = await sql.accounts.get(account)
    assert (row.name, row.external_id, row.email, row.metadata) == ("erased", None, None, None)
    assert await sql.ledger.transfers_of(account, 50) == before
    assert await shop.findings() == []
    with pytest.raises(AccountClosed):
        await sql.accounts.update(account, {"name": "back"}, ADA)
    assert (await sql.accounts.open(details, None)).created
    await sql.accounts.update(
        (await sql.accounts.open(details, None)).account.id,
        {"name": "x", "external_id": None, "email": None, "metadata": None},
        ADA,
    )
    async with sql.database.read() as connection:
        for table in ("accounts", "api_keys", "audit_log", "stripe_customers", "notices", "portal_tokens", "purchases"):
            rows = str((await connection.execute(text(f"select * from {table}"))).all())  # noqa: S608 - names of ours
            assert "ersonal" not in rows, table
