"""Who may do what: every route with every role, and nobody else at all."""

import ast
import json
import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from proxy.admin.accounts.api import AccountsApi
from proxy.admin.api import AdminApi
from proxy.admin.auth import AdminRoute
from proxy.admin.events.api import EventsApi
from proxy.admin.events.pages import EventPages
from proxy.admin.ops_page import OpsPage
from proxy.admin.plans.api import PlansApi
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.promos.pages import PromoPages
from proxy.admin.roles import MAY, ROLES
from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.customers import Customer, new_customer
from tests.support.openapi import fits
from tests.support.servers import ROOT, Sandbox, Tollkeeper, wait_until
from tests.support.source_trees import nodes_in

NOTHING = cast("Any", None)
PLANS, EVENTS = PlansApi(NOTHING, NOTHING, NOTHING), EventsApi(NOTHING, NOTHING, NOTHING)
PROMOS = PromoCodesApi(NOTHING)
API = AdminApi(NOTHING, NOTHING, AccountsApi(NOTHING), PLANS, EVENTS, PROMOS).table()
PAGE = OpsPage(
    NOTHING, NOTHING, PLANS, EventPages(EVENTS, NOTHING), PromoPages(PROMOS), NOTHING, "http://page.test"
).table()
CAP = 50

BODIES: dict[str, Any] = {
    "/api/admin/accounts": {"name": "made by a test"},
    "/grant": {"credits": "1", "reason": "test"},
    "/adjust": {"credits": "-1", "reason": "test"},
    "/block": {"blocked": False, "reason": "test"},
    "/keys": {},
    "/welcome": {},
    "/plan": {"planId": None},
    "/plans": {"planId": "gold", "prices": {"markup": "1.1"}, "reason": "test"},
    "/promos": {"code": "SPRING", "credits": "1", "reason": "test"},
    "/end-user-rules": {"required": False},
    "/end-users": {"endUser": "anna"},
    "/end-users/remove": {"endUser": "nobody"},
    "/api/tokens": {"accountId": "acct_missing"},
    "/flags/{flag}": {"value": True, "reason": "test"},
    "/rates/activate": {"rateCardId": "openai-2026-11-29", "reason": "test"},
    "/events/endpoints": {"url": "http://127.0.0.1:9/events", "kinds": ["key.*"]},
    "/events/endpoints/{endpoint_id}": {"disabled": True},
    "/admins/{admin_key_id}/role": {"role": "viewer", "reason": "test"},
    "/api/admin/admins": {"name": "made by a test", "role": "viewer"},
}
"""By the end of the path; everything else takes a reason."""


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    home = new_folder("roles")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_ADMIN__SUPPORT_GRANT_CREDITS": str(CAP),
        "TOLLKEEPER_ADMIN__WELCOME_CREDITS": "1",
        "TOLLKEEPER_NOTICES__PRIVATE_ENDPOINTS": "true",
    }
    server = Tollkeeper(home, environment).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def keys(server: Tollkeeper) -> dict[str, str]:
    return {role: server.cli("admin", "create", f"the {role}", "--role", role)["adminKey"] for role in ROLES}


@pytest.fixture(scope="module")
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server)


ENDINGS = ("/close", "/erase")
"""Of routes after which an account is no more what it was: they get one of their own."""


def account_for(server: Tollkeeper, route: AdminRoute, customer: Customer) -> str:
    if route.path.endswith(ENDINGS):
        return str(server.cli("account", "create", "to be closed", "--no-key")["accountId"])
    return customer.account_id


def ask(server: Tollkeeper, route: AdminRoute, account_id: str, headers: dict[str, str]) -> httpx.Response:
    path = route.path.format(
        account_id=account_id,
        purchase_id="pur_missing",
        key_id="key_missing",
        token_id="tok_missing",
        flag="auto_recharge",
        event_id="evt_missing",
        admin_key_id="adm_missing",
        name="nobody",
        endpoint_id="ep_missing",
        code="NONE-SUCH",
        notice_id="notice_missing",
        job="finance",
    )
    path += f"?accountId={account_id}" if route.path == "/api/tokens" else ""
    body = next((body for ending, body in BODIES.items() if route.path.endswith(ending)), {"reason": "test"})
    return web.request(
        route.method, server.url + path, json=None if route.method == "GET" else body, headers=headers, timeout=20
    )


@pytest.mark.parametrize("route", API, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_of_the_api_with_every_role(
    route: AdminRoute, server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    account = account_for(server, route, customer)
    for headers in ({}, bearer("tka-wrong"), bearer(customer.api_key), {"Authorization": "Basic x"}, bearer("a.b.c")):
        refused = ask(server, route, account, headers)
        fits(refused, route.path)
        assert refused.status_code == 401, headers
    rows = server.cli("audit", "verify")["rows"]
    for role in ROLES:
        if role in MAY[route.action]:
            continue
        answer = ask(server, route, account, bearer(keys[role]))
        fits(answer, route.path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed"), role
    assert server.cli("audit", "verify")["rows"] == rows, "a refused request changed something"
    for role in MAY[route.action]:
        answer = ask(server, route, account, bearer(keys[role]))
        fits(answer, route.path)
        assert answer.status_code in (200, 201, 202, 404, 409), (role, answer.text)
        if answer.status_code == 404:
            assert answer.json()["error"]["code"] != "not_found", "no such route"


@pytest.mark.parametrize("route", PAGE, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_of_the_page_with_every_role(
    route: AdminRoute, server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    path = server.url + route.path.format(account_id=account_for(server, route, customer))
    assert web.request(route.method, path).status_code == 401
    for role in ROLES:
        with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
            entered = enter(browser, keys[role])
            if role not in MAY["overview.read"]:
                assert entered.status_code == 403
                continue
            assert entered.status_code == 200, entered.text
            token = re.search(r'name="csrf" value="([0-9a-f]+)"', entered.text)
            assert token is not None
            data = {
                "csrf": token[1],
                "reason": "test",
                "name": "made by a test",
                "credits": "1",
                "reference": f"page {role} {route.path}"[-80:],
                "blocked": "no",
                "end_user": "anna",
                "flag": "auto_recharge",
                "value": "true",
                "card": "openai-2026-11-29",
                "event": "evt_missing",
                "job": "finance",
                "url": "http://127.0.0.1:9/events",
                "endpoint": "ep_missing",
                "notice": "notice_missing",
                "purchase": "pur_missing",
                "admin": "adm_missing",
                "role": "viewer",
                "plan": "gold" if route.path.endswith("/plans") else "",
                "markup": "1.1",
            }
            answer = browser.request(route.method, path, data=None if route.method == "GET" else data)
            if role in MAY[route.action]:
                assert answer.status_code in (200, 404, 409), (role, answer.text)
            else:
                assert answer.status_code == 403, role
                assert "may not do this" in answer.text
            if route.method == "POST":
                assert browser.post(path, data={**data, "csrf": "0" * 64}).status_code == 403
                assert browser.post(path, data=data, headers={"origin": "https://evil.example"}).status_code == 403


def test_no_admin_route_is_mounted_past_the_table() -> None:
    signing_in = {"/admin/sign-in", "/admin/sign-in/start", "/admin/sign-in/callback", "/admin/sign-out"}
    open_to_all = {*signing_in, "/admin/static/ops.css"}
    mounts = re.compile(r"\b(?:Route|WebSocketRoute|Mount)\(")
    sources = [source for source in (ROOT / "proxy").rglob("*.py") if mounts.search(source.read_text())]
    assert len(sources) > 3
    for source in sources:
        for node in nodes_in(source, ast.Call):
            named = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Route", "WebSocketRoute", "Mount")
            )
            if named and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
                path = node.args[0].value
                assert not path.startswith(("/admin", "/api/admin")) or path in open_to_all, (source.name, path)


def test_every_action_is_used_or_is_about_the_way_in() -> None:
    used = {row.action for row in (*API, *PAGE)}
    elsewhere = {"portal.open", "act_for", "money.grant_any"}
    assert used | elsewhere == set(MAY)
    assert all("owner" in roles or action == "act_for" for action, roles in MAY.items())
    assert all(roles <= set(ROLES) for roles in MAY.values())


# -- caps -----------------------------------------------------------------------------------------------------


def grant(server: Tollkeeper, key: str, account: str, credits: str, verb: str = "grant", **more: str) -> httpx.Response:
    body = {"credits": credits, "reason": "a test", **more}
    return web.post(f"{server.url}/api/admin/accounts/{account}/{verb}", json=body, headers=bearer(key))


def another(server: Tollkeeper) -> str:
    """The key of another person of the role support: the cap is each one's own."""
    key: str = server.cli("admin", "create", "another", "--role", "support")["adminKey"]
    return key


def test_support_grants_up_to_its_cap_a_day_and_finance_beyond(server: Tollkeeper, keys: dict[str, str]) -> None:
    someone, other, sue = new_customer(server, 0), new_customer(server, 0), another(server)
    assert grant(server, sue, someone.account_id, "30").status_code == 200
    assert grant(server, sue, someone.account_id, "21").json()["error"]["code"] == "grant_over_cap"
    assert grant(server, sue, other.account_id, "15").status_code == 200
    assert grant(server, sue, other.account_id, "6").json()["error"]["code"] == "grant_over_cap"
    assert grant(server, sue, someone.account_id, "5").status_code == 200
    assert grant(server, sue, other.account_id, "0.001").status_code == 403
    assert grant(server, another(server), other.account_id, "50.001").status_code == 403
    assert grant(server, another(server), someone.account_id, "15").status_code == 200
    assert grant(server, keys["finance"], someone.account_id, "1000").status_code == 200
    someone.wait_balance(1_050_000)
    assert grant(server, keys["finance"], someone.account_id, "-50", "adjust").json()["bookedMillicredits"] == "-50000"
    someone.wait_balance(1_000_000)


def test_a_refused_grant_leaves_neither_money_nor_a_row(server: Tollkeeper, keys: dict[str, str]) -> None:
    del keys
    someone, sue = new_customer(server, 0), another(server)
    rows = server.cli("audit", "verify")["rows"]
    grant(server, sue, someone.account_id, "50")
    grant(server, sue, someone.account_id, "50")
    assert server.cli("audit", "verify")["rows"] == rows + 1
    assert len(server.cli("ledger", someone.account_id)["data"]) == 1


@pytest.mark.parametrize("credits", ["0", "-1", "nan", "x", "", "0.0001", "9999999999"])
def test_what_is_no_grant_is_refused(
    credits: str, server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    assert grant(server, keys["owner"], customer.account_id, credits).status_code == 400
    assert grant(server, keys["owner"], customer.account_id, "1", reason=" ").status_code == 400
    assert grant(server, keys["owner"], "acct_missing", "1").status_code == 404


def test_the_same_reference_is_booked_once(server: Tollkeeper, keys: dict[str, str]) -> None:
    someone = new_customer(server, 0)
    first = grant(server, keys["owner"], someone.account_id, "5", reference="once").json()
    again = grant(server, keys["owner"], someone.account_id, "5", reference="once").json()
    assert (first["bookedMillicredits"], again["bookedMillicredits"], again["postedMillicredits"]) == (
        "5000",
        "0",
        "5000",
    )


def test_who_makes_accounts_makes_no_credits_with_them(server: Tollkeeper, keys: dict[str, str]) -> None:
    """Nor gets at keys that their role may not make."""
    sue, granted = another(server), 0
    for number in range(3):
        made = web.post(f"{server.url}/api/admin/accounts", json={"name": f"mine {number}"}, headers=bearer(sue))
        assert made.status_code == 201
        assert (made.json()["keyId"], made.json()["apiKey"]) == (None, None)
        assert server.cli("key", "list", made.json()["accountId"])["data"] == []
        granted += 50 * (grant(server, sue, made.json()["accountId"], "50").status_code == 200)
    assert granted == CAP
    for role in ("ops", "owner", "service"):
        made = web.post(f"{server.url}/api/admin/accounts", json={"name": "theirs"}, headers=bearer(keys[role]))
        assert made.json()["apiKey"].startswith("tk-")


def test_two_grants_at_once_stay_within_the_cap(server: Tollkeeper) -> None:
    accounts, sue = [new_customer(server, 0).account_id for _ in range(3)], another(server)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda account: grant(server, sue, account, "30"), accounts))
    assert sorted(answer.status_code for answer in answers) == [200, 403, 403]


# -- what finance takes away ----------------------------------------------------------------------------------


def test_a_months_journal_is_the_one_of_the_command(server: Tollkeeper, keys: dict[str, str]) -> None:
    someone = new_customer(server, 0)
    assert grant(server, keys["finance"], someone.account_id, "7").status_code == 200
    today = datetime.now(UTC).date()
    first, last = today.replace(day=1), today.replace(day=monthrange(today.year, today.month)[1])
    finance = bearer(keys["finance"])
    answer = web.get(f"{server.url}/api/admin/books/journal", params={"month": f"{today:%Y-%m}"}, headers=finance)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert f"journal-{today:%Y-%m}.csv" in answer.headers["content-disposition"]
    file = server.folder / "journal.csv"
    server.cli("books", "journal", "--from", str(first), "--to", str(last), "--output", str(file))
    assert answer.content == file.read_bytes()
    assert answer.text.splitlines()[0] == "day,account,debitUsd,creditUsd"
    assert len(answer.text.splitlines()) > 2
    for month in ("2026-13", "2026", "x", "", "2026-1", "1999-01"):
        assert (
            web.get(f"{server.url}/api/admin/books/journal", params={"month": month}, headers=finance).status_code
            == 400
        ), month


def test_the_exported_audit_log_is_the_one_of_the_command(server: Tollkeeper, keys: dict[str, str]) -> None:
    answer = web.get(f"{server.url}/api/admin/audit/export", headers=bearer(keys["finance"]))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/jsonl")
    file = server.folder / "exported.jsonl"
    server.cli("audit", "export", str(file))
    assert answer.content == file.read_bytes()


# -- the service role -----------------------------------------------------------------------------------------


def test_the_operators_app_makes_accounts_and_acts_for_them(server: Tollkeeper, keys: dict[str, str]) -> None:
    service = bearer(keys["service"])
    made = web.post(f"{server.url}/api/admin/accounts", json={"name": "user 7"}, headers=service).json()
    grant(server, keys["owner"], made["accountId"], "1")
    acting = {**service, "Tollkeeper-Account": made["accountId"]}
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}

    def chat(headers: dict[str, str]) -> httpx.Response:
        return web.post(f"{server.v1}/chat/completions", json=body, headers=headers)

    wait_until(lambda: chat(acting).status_code == 200, 5, "the grant is live")
    me = web.get(f"{server.url}/api/billing/me", headers=acting).json()
    assert (me["accountId"], int(me["balanceMillicredits"]) < 1_000) == (made["accountId"], True)
    server.cli("drain")
    rows = server.cli("usage", made["accountId"])["data"]
    assert {row["keyId"][:4] for row in rows} == {"adm_"}
    # the account must be named, once, and exist; nobody else may act; and a customer cannot act for another
    assert chat(service).json()["error"]["code"] == "missing_account"
    assert chat({**service, "Tollkeeper-Account": "acct_missing"}).status_code == 401
    assert chat({**service, "Tollkeeper-Account": "x y"}).status_code == 401
    assert chat({**bearer(keys["owner"]), "Tollkeeper-Account": made["accountId"]}).status_code == 401
    mine = new_customer(server)
    theirs = web.get(
        f"{server.url}/api/billing/me", headers={**mine.headers, "Tollkeeper-Account": made["accountId"]}
    ).json()
    assert theirs["accountId"] == mine.account_id
    link = web.post(f"{server.url}/api/portal/sessions", json={"accountId": made["accountId"]}, headers=service)
    assert link.status_code == 201
    assert (
        web.post(
            f"{server.url}/api/portal/sessions", json={"accountId": made["accountId"]}, headers=bearer(keys["viewer"])
        ).status_code
        == 401
    )
    assert made["accountId"] in web.get(link.json()["url"]).text


def test_blocking_and_revoking_end_it(server: Tollkeeper, customer: Customer) -> None:
    made = server.cli("admin", "create", "short-lived", "--role", "service")
    acting = {**bearer(made["adminKey"]), "Tollkeeper-Account": customer.account_id}

    def status() -> int:
        return web.get(f"{server.url}/api/billing/me", headers=acting).status_code

    assert status() == 200
    server.cli("account", "block", customer.account_id)
    wait_until(lambda: status() == 403, 5, "the account is blocked")
    server.cli("account", "block", customer.account_id, "--unblock")
    wait_until(lambda: status() == 200, 5, "and back")
    server.cli("admin", "revoke", made["adminKeyId"])
    wait_until(lambda: status() == 401, 5, "the key is revoked")
    assert web.get(f"{server.url}/api/admin/whoami", headers=bearer(made["adminKey"])).status_code == 401
    listed = {row["adminKeyId"]: row for row in server.cli("admin", "list")["data"]}
    assert listed[made["adminKeyId"]]["state"] == "revoked"
    assert made["adminKey"] not in json.dumps(listed)


def test_a_sign_in_ends_with_its_key_and_with_its_time(server: Tollkeeper) -> None:
    made = server.cli("admin", "create", "short-lived", "--role", "ops", "--expires", "3s")
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        assert enter(browser, made["adminKey"]).status_code == 200
        wait_until(lambda: browser.get("/admin").status_code == 401, 5, "the key expired")
    made = server.cli("admin", "create", "revoked", "--role", "ops")
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        assert enter(browser, made["adminKey"]).status_code == 200
        server.cli("admin", "revoke", made["adminKeyId"])
        assert browser.get("/admin").status_code == 401
    assert server.cli("audit", "verify")["ok"]


def test_a_changed_role_holds_at_once_and_ends_sign_ins(server: Tollkeeper, keys: dict[str, str]) -> None:
    made = server.cli("admin", "create", "promoted", "--role", "viewer")
    key_id, whoami = made["adminKeyId"], f"{server.url}/api/admin/whoami"
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        enter(browser, made["adminKey"])
        changed = server.cli("admin", "role", key_id, "--role", "finance", "--reason", "took over the books")
        assert changed == {"adminKeyId": key_id, "role": "finance"}
        assert browser.get("/admin").status_code == 401
    assert web.get(whoami, headers=bearer(made["adminKey"])).json()["role"] == "finance"
    path, body = f"{server.url}/api/admin/admins/{key_id}/role", {"role": "ops", "reason": "a mistake"}
    answer = web.post(path, json=body, headers=bearer(keys["owner"]))
    fits(answer, "/api/admin/admins/{admin_key_id}/role")
    assert web.get(whoami, headers=bearer(made["adminKey"])).json()["role"] == "ops"
    assert web.post(path, json={**body, "role": "king"}, headers=bearer(keys["owner"])).status_code == 400
    server.cli("admin", "revoke", key_id)
    assert web.post(path, json=body, headers=bearer(keys["owner"])).status_code == 404


def test_admins_are_invited_changed_and_revoked_on_the_page(server: Tollkeeper, keys: dict[str, str]) -> None:
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        entered = enter(browser, keys["owner"])
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', entered.text)
        assert token is not None
        form = {"csrf": token[1], "name": "Zoë", "role": "viewer", "expires": "30d", "reason": ""}
        shown = browser.post("/admin/admins/invite", data=form)
        secret = re.search(r"tka-[\w-]{43}", shown.text)
        assert secret is not None
        assert browser.get(str(shown.url)).status_code == 404, "once"
        (zoe,) = [row for row in server.cli("admin", "list")["data"] if row["name"] == "Zoë"]
        assert (zoe["role"], zoe["expiresAt"] is not None) == ("viewer", True)
        about = {"csrf": token[1], "admin": zoe["adminKeyId"]}
        refused = browser.post("/admin/admins/role", data={**about, "role": "finance", "reason": ""})
        assert refused.status_code == 400
        assert re.search(
            rf'<details class="ask" open><summary>Role.*?id="role-reason-{zoe["adminKeyId"]}"', refused.text, re.DOTALL
        )
        done = browser.post("/admin/admins/role", data={**about, "role": "finance", "reason": "books"})
        assert "The role is changed" in done.text
        done = browser.post("/admin/admins/revoke", data={**about, "reason": "left"})
        assert "revoked" in done.text
        (zoe,) = [row for row in server.cli("admin", "list")["data"] if row["name"] == "Zoë"]
        assert (zoe["role"], zoe["state"]) == ("finance", "revoked")
        (own,) = [row for row in server.cli("admin", "list")["data"] if row["name"] == "the owner"]
        for path, more in (("role", {"role": "viewer"}), ("revoke", {})):
            mine = {"csrf": token[1], "admin": own["adminKeyId"], "reason": "a slip", **more}
            assert browser.post(f"/admin/admins/{path}", data=mine).status_code == 400
        assert browser.get("/admin").status_code == 200


def test_a_refused_form_is_shown_again_with_what_was_typed(
    server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    account = f"/admin/accounts/{customer.account_id}"
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, keys["owner"]).text)
        assert token is not None
        typed = {"csrf": token[1], "credits": "lots", "reason": "for <you>", "reference": "grant_twice"}
        refused = browser.post(f"{account}/grant", data=typed)
        assert refused.status_code == 400
        assert re.search(r'id="grant-credits"[^>]*value="lots"[^>]*aria-invalid="true" autofocus', refused.text)
        assert 'value="for &lt;you&gt;"' in refused.text
        assert 'value="grant_twice"' in refused.text, "sent again, it is the same grant"
        assert 'role="alert"><strong>Not done.</strong>' in refused.text
        assert refused.text.count("aria-invalid") == 1
        plan = {"csrf": token[1], "plan": "silver", "markup": "2", "models": "{oops", "reason": "a try"}
        refused = browser.post("/admin/plans", data=plan)
        assert refused.status_code == 400
        assert re.search(r'id="plan-models"[^>]*aria-invalid="true"[^>]*>\{oops</textarea>', refused.text)
        assert 'value="silver"' in refused.text
        made = {"csrf": token[1], "name": "x" * 201, "external_id": "mine", "email": "a@b.test"}
        refused = browser.post("/admin/accounts", data=made)
        assert re.search(r"<details open>\s*<summary>Make an account", refused.text)
        assert 'value="mine"' in refused.text
        refused = browser.post(
            "/admin/flags/set", data={"csrf": token[1], "flag": "rollout.percent", "value": "many", "reason": "r"}
        )
        assert re.search(r'id="value-rollout.percent"[^>]*value="many"[^>]*aria-invalid', refused.text)


def test_support_opens_the_customers_page_as_staff(
    server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, keys["support"]).text)
        assert token is not None
        page = browser.get(f"/admin/accounts/{customer.account_id}")
        assert f"form-action 'self' {server.url}" in page.headers["content-security-policy"]
        asking = browser.post(f"/admin/accounts/{customer.account_id}/page", data={"csrf": token[1]})
        assert "shows them as staff see them" in asking.text
    lines = server.run("audit", "export", "opened.jsonl")
    assert lines.returncode == 0
    last = [json.loads(line) for line in (server.folder / "opened.jsonl").read_text().splitlines()][-1]
    assert (last["action"], last["subject"], last["role"]) == ("portal.link", customer.account_id, "support")


def test_no_other_site_signs_anybody_in_or_out(server: Tollkeeper, keys: dict[str, str]) -> None:
    with web.client(base_url=server.url) as browser:
        assert (
            browser.get("/admin").headers["referrer-policy"] == "same-origin"
        )  # with none, our own form would come from "null"
        for origin in ({}, {"origin": "null"}, {"origin": "https://evil.example"}):
            refused = browser.post("/admin/sign-in", data={"key": keys["viewer"]}, headers=origin)
            assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
            assert refused.headers["referrer-policy"] == "same-origin"
        assert enter(browser, keys["viewer"]).status_code == 303
        page = browser.get("/admin")
        assert page.status_code == 200
        refused = browser.post("/admin/sign-out", data={"csrf": "0" * 64})
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        assert browser.get("/admin").status_code == 200
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token is not None
        assert browser.post("/admin/sign-out", data={"csrf": token[1]}).status_code == 303
        assert browser.get("/admin").status_code == 401


@pytest.mark.parametrize(
    "when", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2020-01-01T00:00:00Z", "soon"]
)
def test_nothing_ends_in_the_past_or_beyond_the_calendar(
    when: str, server: Tollkeeper, keys: dict[str, str], customer: Customer
) -> None:
    base, owner = f"{server.url}/api/admin", bearer(keys["owner"])
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/accounts/{customer.account_id}/keys", {}),
        ("POST", "/admins", {"name": "x", "role": "viewer"}),
        ("PUT", "/flags/auto_recharge", {"value": True, "reason": "x"}),
    ]
    for method, path, body in asked:
        refused = web.request(method, base + path, json={**body, "expiresAt": when}, headers=owner)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expiresAt"), path
    if not when.startswith("2020"):
        rates = {"rateCardId": "openai-2026-11-29", "reason": "x", "effectiveAt": when}
        assert web.post(f"{base}/rates/activate", json=rates, headers=owner).status_code == 400
    for path in (f"/accounts/{customer.account_id}", "/admins", "/flags", "/rates"):
        assert web.get(base + path, headers=owner).status_code == 200, path
