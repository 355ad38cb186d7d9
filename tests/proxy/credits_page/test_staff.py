"""A person of the operator's on a customer's Credits page: they see it and change nothing, for as long as their key lasts."""

import re
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text

from billing.ledger.accounts import KeyRules
from billing.ledger.admins import Admins
from billing.ledger.audit_log import Who
from billing.ledger.portal_tokens import PortalTokens, Staff
from billing.storage.database import now_ms
from proxy.admin.auth import AdminAuth
from proxy.web.auth_failures import AuthFailures
from tests.support.credits_page import Visit, visiting
from tests.support.shop import Shop
from tests.support.stores import Books

ANN = Who("ann", "owner")
HOUR_MS = 3_600_000
Ends = Callable[[Books, str], Awaitable[None]]


async def admin_key(sql: Books, role: str) -> tuple[str, str]:
    """A new key: its id, and the key."""
    return await Admins(sql.database).create(f"the {role}", role, ANN)


async def enter(visit: Visit, account: str, key: str) -> None:
    asking = await visit.client.get((await visit.link(account, key)).json()["url"])
    assert (await visit.enter(asking)).status_code == 303


@pytest.mark.parametrize("role", ["support", "owner"])
async def test_staff_see_the_page_and_change_nothing(shop: Shop, role: str) -> None:
    sql, account = shop.books, await shop.books.account(5_000)
    await shop.paid(account)
    async with sql.database.write() as connection:
        await connection.execute(text("UPDATE stripe_customers SET payment_method_id = 'pm_1'"))
    key_id, _ = await sql.accounts.create_key(account, KeyRules())
    admin_id, secret = await admin_key(sql, role)
    async with visiting(shop, admins=AdminAuth(Admins(sql.database), None, AuthFailures())) as visit:
        asking = await visit.client.get((await visit.link(account, secret)).json()["url"])
        assert "nothing can be changed there" in asking.text
        assert "Max-Age=3" in (await visit.enter(asking)).headers["set-cookie"]
        page = await visit.page()
        assert f"seen as staff by the {role} ({admin_id}), role {role}" in page
        assert re.findall(r'<form method="(\w+)" action="([^"]+)"', page) == [
            ("post", "/credits/sign-out"),
            ("get", "/credits#usage"),
            ("get", "/credits/statement"),
        ]
        before = await shop.rows("SELECT count(*) FROM audit_log UNION ALL SELECT count(*) FROM purchases")
        recharge = {"enabled": "yes", "consent": "yes", "threshold": "5", "ceiling": "100", "package": "pro"}
        for path, fields in (
            ("buy", {"package": "pro"}),
            ("recharge", recharge),
            ("cards", {}),
            ("cards/remove", {}),
            ("warning", {"warning": "5"}),
            ("keys", {}),
            ("keys/revoke", {"key": key_id}),
        ):
            refused = await visit.send(path, **fields)
            assert refused.status_code == 403, path
            assert "You see this page as staff" in refused.text
        assert [row.revoked_at for row in await sql.accounts.keys_of(account)] == [None]
        assert await shop.rows("SELECT count(*) FROM audit_log UNION ALL SELECT count(*) FROM purchases") == before
        assert await shop.recharges.get(account) is None
        assert (await visit.client.get("/credits/statement?month=2026-11")).status_code == 200
        assert (await visit.send("sign-out")).status_code == 303
        assert (await visit.client.get("/credits")).status_code == 401


async def test_the_operators_app_and_the_command_line_open_the_customers_own(shop: Shop) -> None:
    sql, account = shop.books, await shop.books.account(5_000)
    _, secret = await admin_key(sql, "service")
    async with visiting(shop, admins=AdminAuth(Admins(sql.database), None, AuthFailures())) as visit:
        await enter(visit, account, secret)
        assert (await visit.send("keys")).status_code == 303
        token, _ = await PortalTokens(sql.database).link(account, Who("cli:root", "cli"))
        await visit.client.post("/credits/enter", data={"token": token}, headers={"origin": "http://meter.test"})
        assert (await visit.send("keys")).status_code == 303
        assert "as staff" not in await visit.page()


async def revoked(sql: Books, key_id: str) -> None:
    await Admins(sql.database).revoke(key_id, ANN)


async def expired(sql: Books, key_id: str) -> None:
    async with sql.database.write() as connection:
        await connection.execute(text(f"UPDATE admin_keys SET expires_at = {now_ms()} WHERE id = '{key_id}'"))


@pytest.mark.parametrize("ends", [revoked, expired])
async def test_sessions_and_links_end_with_the_key_that_made_them(shop: Shop, ends: Ends) -> None:
    sql, account = shop.books, await shop.books.account(5_000)
    key_id, secret = await admin_key(sql, "support")
    _, other = await admin_key(sql, "support")
    async with visiting(shop, admins=AdminAuth(Admins(sql.database), None, AuthFailures())) as visit:
        unused, kept = [(await visit.link(account, key)).json()["url"] for key in (secret, other)]
        asking = await visit.client.get(unused)
        await enter(visit, account, secret)
        assert (await visit.client.get("/credits")).status_code == 200
        await ends(sql, key_id)
        assert (await visit.client.get("/credits")).status_code == 401
        assert (await visit.client.get(unused)).status_code == 403
        assert (await visit.enter(asking)).status_code == 403
        assert (await visit.client.get(kept)).status_code == 200


async def test_staff_sessions_last_an_hour_and_customers_twelve(shop: Shop) -> None:
    sql, account = shop.books, await shop.books.account(5_000)
    portal = PortalTokens(sql.database)
    key_id, _ = await admin_key(sql, "support")
    by_key, by_token = Staff("bob (adm_1)", "support", key_id), Staff("oidc:u1 (ann@example.com)", "support", None)
    for staff, hours in ((by_key, 1), (by_token, 1), (None, 12)):
        token, _ = await portal.link(account, None, staff)
        opened = await portal.open(token)
        assert opened is not None
        assert 0 <= now_ms() + hours * HOUR_MS - opened[1].expires_at < 60_000
        assert await portal.session(opened[0]) == opened[1]
