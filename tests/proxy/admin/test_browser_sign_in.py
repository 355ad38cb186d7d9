"""Signing in to /admin with an identity provider in the browser: whoever may is in, and one wrong thing lets nobody in."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from starlette.applications import Starlette

from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog
from billing.storage.database import now_ms
from config.checks import check_combinations
from config.errors import ConfigError
from config.secrets import Secret
from config.settings import AdminSettings, Settings
from proxy.admin.auth import AdminAuth
from proxy.admin.identity.oidc import TokenChecker, role_of
from proxy.admin.sign_in.code_flow import CodeFlow
from proxy.admin.sign_in.pages import SignInPages
from proxy.web.auth_failures import AuthFailures
from proxy.web.rejections import Rejection
from tests.support.identity import CLIENT, SECRET, Idp, query_of
from tests.support.rsa_keys import rsa_key
from tests.support.stores import Books, close_books, open_books

ADMIN = "http://admin.test"
CALLBACK = f"{ADMIN}/admin/sign-in/callback"
STRANGER = rsa_key("stranger")
ROLES = {"ann@example.com": "finance", "@example.org": "viewer", "group:Tollkeeper owners": "owner"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Idp]:
    made = Idp(CALLBACK)
    yield made
    made.close()


@pytest.fixture
def idp(provider: Idp) -> Idp:
    provider.reset()
    return provider


@pytest.fixture
async def books(folder: Path) -> AsyncIterator[Books]:
    """Sessions are kept in SQL as every other sign-in's are: one database tells as much as two."""
    opened = await open_books(folder, "")
    yield opened
    await close_books(opened)


@contextlib.asynccontextmanager
async def browsing(books: Books, idp: Idp, secret: str = SECRET, **conf: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A browser before our pages."""
    settings = AdminSettings(oidc_issuer=idp.url, oidc_client_id=CLIENT, oidc_roles=ROLES, **conf)
    async with httpx.AsyncClient() as outside:
        tokens = TokenChecker(settings, outside)
        flow = CodeFlow(tokens.provider, tokens, Secret(secret) if secret else None)
        auth = AdminAuth(Admins(books.database), tokens, AuthFailures(5))
        routes = SignInPages(auth, flow, settings, ADMIN, ADMIN).routes()
        transport = httpx.ASGITransport(Starlette(routes=routes))
        async with httpx.AsyncClient(transport=transport, base_url=ADMIN) as client:
            yield client


async def to_provider(client: httpx.AsyncClient, idp: Idp) -> str:
    """Begin to sign in; where the provider sends the browser back to."""
    begun = await client.get("/admin/sign-in/start")
    assert begun.status_code == 303, begun.text
    assert begun.headers["location"].startswith(f"{idp.url}/authorize?")
    async with httpx.AsyncClient() as outside:
        back: str = (await outside.get(begun.headers["location"])).headers["location"]
    return back


async def test_whoever_may_is_signed_in(books: Books, idp: Idp) -> None:
    async with browsing(books, idp, session_minutes=30) as client:
        back = await to_provider(client, idp)
        kept = client.cookies["tk_sign_in"]
        done = await client.get(back)
        assert done.status_code == 200
        assert 'http-equiv="refresh" content="0; url=/admin"' in done.text
        header = next(one for one in done.headers.get_list("set-cookie") if one.startswith("tk_admin="))
        assert "HttpOnly" in header
        assert "samesite=strict" in header.lower()
        admin = await Admins(books.database).session(client.cookies["tk_admin"])
        assert admin is not None
        assert (admin.actor, admin.role) == ("oidc:u1 (ann@example.com)", "finance")
        assert (admin.expires_at or 0) > now_ms() + 20 * 60_000, "not only for the minute that the token lasts"
        assert "tk_sign_in" not in client.cookies
        (row,) = await AuditLog(books.database).newest(5)
        assert (row.action, row.actor) == ("admin.sign-in", "oidc:u1 (ann@example.com)")
        # once: neither the address nor the cookie does it again
        client.cookies.set("tk_sign_in", kept, path="/admin/sign-in")
        assert (await client.get(back)).status_code == 401
    asked, sent = idp.asked[-1], idp.exchanged[-2]
    assert len({asked["state"], asked["nonce"], sent["code_verifier"]}) == 3
    assert all(len(value) >= 43 for value in (asked["state"], asked["nonce"], sent["code_verifier"]))
    assert "code_verifier" not in asked


async def test_a_public_client_has_no_secret_and_one_whose_issuer_wants_it_in_the_form(books: Books, idp: Idp) -> None:
    idp.public_client = True
    async with browsing(books, idp, secret="") as client:
        assert (await client.get(await to_provider(client, idp))).status_code == 200
    assert "client_secret" not in idp.exchanged[-1]
    idp.document_changes = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    async with browsing(books, idp) as client:
        assert (await client.get(await to_provider(client, idp))).status_code == 200
    assert idp.exchanged[-1]["client_secret"] == SECRET


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another-client"},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"iss": "https://evil.test"},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"sub": None},
        {"email": "bob@example.com"},
        {"email_verified": False},
        {"email_verified": None},
        {"email": "ann@example.com.evil.test"},
    ],
    ids=repr,
)
async def test_an_id_token_with_one_wrong_thing_lets_nobody_in(books: Books, idp: Idp, change: dict[str, Any]) -> None:
    async with browsing(books, idp) as client:
        back = await to_provider(client, idp)
        idp.claims = change
        refused = await client.get(back)
        assert refused.status_code == 401
        assert "tk_admin" not in client.cookies
        assert 'role="alert"' in refused.text


async def test_a_token_that_somebody_else_signed_lets_nobody_in(books: Books, idp: Idp) -> None:
    async with browsing(books, idp) as client:
        for key, kid in ((STRANGER, "first"), (STRANGER, "unknown")):
            back = await to_provider(client, idp)
            idp.signing_key, idp.kid = key, kid
            assert (await client.get(back)).status_code == 401
            assert "tk_admin" not in client.cookies
            idp.reset()


async def test_an_unsigned_token_lets_nobody_in(books: Books, idp: Idp, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = jwt.encode({"sub": "u1"}, None, algorithm="none")  # type: ignore[arg-type]
    monkeypatch.setattr(idp, "token", lambda nonce: unsigned)
    async with browsing(books, idp) as client:
        assert (await client.get(await to_provider(client, idp))).status_code == 401


async def test_an_answer_that_this_browser_did_not_ask_for_is_refused(books: Books, idp: Idp) -> None:
    async with browsing(books, idp) as client, browsing(books, idp) as victim:
        theirs = await to_provider(client, idp)
        before = len(idp.exchanged)
        assert (await victim.get(theirs)).status_code == 401, "an address that an attacker sends round"
        await to_provider(victim, idp)
        assert (await victim.get(theirs)).status_code == 401, "with an attempt of its own under way as well"
        back = await to_provider(victim, idp)
        for name, value in (("state", "x"), ("iss", "https://evil.test"), ("code", ""), ("error", "access_denied")):
            query = {**query_of(back), name: value}
            attempt = victim.cookies["tk_sign_in"]
            assert (await victim.get(CALLBACK, params=query)).status_code in (401, 429), name
            victim.cookies.set("tk_sign_in", attempt, path="/admin/sign-in")
        assert len(idp.exchanged) == before, "the provider was asked for nothing"
        assert "tk_admin" not in victim.cookies


async def test_a_wrong_secret_and_a_silent_provider(books: Books, idp: Idp) -> None:
    async with browsing(books, idp, secret="wrong") as client:
        assert (await client.get(await to_provider(client, idp))).status_code == 401
    async with browsing(books, idp) as client:
        back = await to_provider(client, idp)
        idp.down = True
        assert (await client.get(back)).status_code == 503
    async with browsing(books, idp) as client:
        assert (await client.get("/admin/sign-in/start")).status_code == 503


async def test_a_provider_that_is_away_is_not_asked_for_each_who_comes(books: Books, idp: Idp) -> None:
    idp.down, before = True, idp.described
    async with browsing(books, idp) as client:
        assert [(await client.get("/admin/sign-in/start")).status_code for _ in range(4)] == [503] * 4
    assert idp.described == before + 1


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.test"},
        {"token_endpoint": "ftp://127.0.0.1/token"},
        {"code_challenge_methods_supported": ["plain"]},
        {"authorization_endpoint": None},
    ],
    ids=repr,
)
async def test_a_description_that_cannot_be_trusted_is_not(books: Books, idp: Idp, change: dict[str, Any]) -> None:
    idp.document_changes = change
    async with browsing(books, idp) as client:
        refused = await client.get("/admin/sign-in/start")
        assert refused.status_code == 503
        assert "location" not in refused.headers


async def test_failures_are_counted_by_address(books: Books, idp: Idp) -> None:
    async with browsing(books, idp) as client:
        statuses = [(await client.get(f"{CALLBACK}?code=x&state=y")).status_code for _ in range(6)]
    assert statuses == [401] * 5 + [429]


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"email": "Ann@Example.com", "email_verified": True}, "finance"),
        ({"email": "eve@example.org", "email_verified": "true"}, "viewer"),
        ({"email": "eve@sub.example.org", "email_verified": True}, None),
        ({"groups": ["Tollkeeper owners"], "email": "ann@example.com", "email_verified": True}, "owner"),
        ({"groups": "Tollkeeper owners"}, "owner"),
        ({"groups": ["tollkeeper owners"]}, None),
        ({"groups": ["ann@example.com", "owner"]}, None),
        ({"tollkeeper_role": "ops"}, "ops"),
        ({"tollkeeper_role": ["viewer", "ops"]}, "ops"),
        ({"tollkeeper_role": "emperor"}, None),
        ({}, None),
    ],
)
def test_who_somebody_is_here(claims: dict[str, Any], role: str | None) -> None:
    assert role_of(claims, AdminSettings(oidc_roles=ROLES)) == role  # type: ignore[arg-type]


async def test_no_bearer_token_is_taken_where_no_audience_is_set(books: Books, idp: Idp) -> None:
    conf = AdminSettings(oidc_issuer=idp.url, oidc_client_id=CLIENT, oidc_roles=ROLES)  # type: ignore[arg-type]
    async with httpx.AsyncClient() as outside:
        tokens = TokenChecker(conf, outside)
        with pytest.raises(Rejection, match="oidc_audience"):
            await tokens.check(idp.token("n"))
        # with an audience it is, by the keys that the issuer itself names
        named = TokenChecker(AdminSettings(oidc_issuer=idp.url, oidc_audience=CLIENT, oidc_roles=ROLES), outside)  # type: ignore[arg-type]
        assert (await named.check(idp.token("n"))).role == "finance"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"oidc_issuer": "https://id.test"}, "admin.oidc_issuer"),
        ({"oidc_client_id": "x"}, "admin.oidc_client_id"),
        ({"oidc_issuer": "id.test", "oidc_client_id": "x"}, "admin.oidc_issuer"),
        ({"oidc_issuer": "https://id.test", "oidc_client_id": "x", "oidc_scopes": ("email",)}, "admin.oidc_scopes"),
        ({"public_url": "admin.test"}, "admin.public_url"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_combinations(Settings(admin=AdminSettings(**changes)), "proxy.toml")
    assert [problem.key for problem in refused.value.problems] == [key]
