"""What each listener serves, and what browsers are told."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.servers import Sandbox, Tollkeeper, free_port, served_over

APP = "https://app.example.com"


@pytest.fixture(scope="module", params=["embedded", "redis"])
def server(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    home = new_folder(f"edge-{request.param}")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_LISTEN__SIDE_PORT": str(free_port()),
        "TOLLKEEPER_LISTEN__ADMIN_PORT": str(free_port()),
        "TOLLKEEPER_CORS__ALLOWED_ORIGINS": f'["{APP}"]',
    }
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def owner(server: Tollkeeper) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.cli('admin', 'create', 'owner', '--role', 'owner')['adminKey']}"}


def ports(server: Tollkeeper) -> dict[str, str]:
    names = {"v1": "PORT", "side": "SIDE_PORT", "admin": "ADMIN_PORT"}
    environment = server.all_environment()
    return {group: f"http://127.0.0.1:{environment[f'TOLLKEEPER_LISTEN__{name}']}" for group, name in names.items()}


def made(server: Tollkeeper) -> Customer:
    """A customer whose balance is not waited for: /api/billing is on another port here."""
    account = server.cli("account", "create", "test")
    return Customer(server, account["accountId"], account["apiKey"])


SERVED = {
    "/v1/models": "v1",
    "/api/billing/me": "side",
    "/credits": "side",
    "/api/admin/flags": "admin",
    "/admin": "admin",
    "/metrics": "admin",
}


@pytest.mark.parametrize(("path", "group"), SERVED.items())
def test_each_listener_serves_its_own(path: str, group: str, server: Tollkeeper, owner: dict[str, str]) -> None:
    headers = owner if group == "admin" else made(server).headers
    for name, url in ports(server).items():
        answer = web.get(url + path, headers=headers)
        if name == group:
            assert answer.status_code in (200, 401), (name, path)
            assert answer.status_code == 200 or path in ("/credits", "/admin")
        else:
            assert answer.status_code == 404, (name, path)
            assert answer.json()["error"]["code"] in ("not_found", "unknown_url")


def test_the_operators_app_has_its_part_of_the_admin_api_beside_its_portal_links_and_nobody_else_has(
    server: Tollkeeper, owner: dict[str, str]
) -> None:
    urls = ports(server)
    service = {"Authorization": f"Bearer {server.cli('admin', 'create', 'our app', '--role', 'service')['adminKey']}"}
    account = f"/api/admin/accounts/{made(server).account_id}"
    for path in ("/api/admin/whoami", "/api/admin/accounts", account, f"{account}/keys"):
        found = {name: web.get(url + path, headers=service).status_code for name, url in urls.items()}
        assert found == {"v1": 404, "side": 200, "admin": 200}, path
        found = {name: web.get(url + path, headers=owner).status_code for name, url in urls.items()}
        assert found == {"v1": 404, "side": 403, "admin": 200}, path
        assert web.get(urls["side"] + path).status_code == 401
        assert (
            web.get(urls["side"] + path, headers={"Origin": APP, **service}).headers.get("access-control-allow-origin")
            is None
        )
    refused = web.post(f"{urls['side']}{account}/grant", json={"credits": "1", "reason": "x"}, headers=service)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_allowed")
    for path in ("/api/admin/accountsx", "/api/admin/audit", "/api/admin"):
        assert web.get(urls["side"] + path, headers=service).status_code == 404, path
    link = web.post(f"{urls['side']}/api/portal/sessions", json={"accountId": account[20:]}, headers=service)
    assert link.status_code == 201


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=gpt-realtime-2.1"])
def test_sockets_open_only_where_v1_is_served(path: str, server: Tollkeeper) -> None:
    account = made(server)
    account.grant("1000")  # one without credits is refused at the handshake
    headers = account.headers

    def opened_at(url: str) -> int:
        try:
            with connect(url.replace("http://", "ws://") + path, additional_headers=headers, open_timeout=10):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    assert {name: opened_at(url) for name, url in ports(server).items()} == {"v1": 101, "side": 404, "admin": 404}


def test_health_is_on_every_port(server: Tollkeeper) -> None:
    for url in ports(server).values():
        assert web.get(f"{url}/healthz").status_code == 200
        assert web.get(f"{url}/readyz").status_code == 200


def test_what_browsers_are_told_everywhere(server: Tollkeeper, owner: dict[str, str]) -> None:
    urls = ports(server)
    for url, headers in (
        (f"{urls['side']}/api/billing/me", {}),
        (f"{urls['side']}/credits", {}),
        (f"{urls['admin']}/admin", {}),
        (f"{urls['admin']}/api/admin/flags", owner),
        (f"{urls['admin']}/metrics", {}),
        (f"{urls['v1']}/healthz", {}),
    ):
        answer = web.get(url, headers=headers)
        assert answer.headers["x-content-type-options"] == "nosniff", url
        assert answer.headers["x-frame-options"] == "DENY", url
        # the page that signs in must be named as the sender of its form
        assert answer.headers["referrer-policy"] == ("same-origin" if url.endswith("/admin") else "no-referrer"), url
        assert "default-src 'none'" in answer.headers["content-security-policy"], url
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], url
        assert len(answer.headers.get_list("content-security-policy")) == 1
        assert "access-control-allow-origin" not in answer.headers


def test_only_listed_origins_may_read_the_side_api(server: Tollkeeper, owner: dict[str, str]) -> None:
    urls, customer = ports(server), made(server)
    asking = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    me = f"{urls['side']}/api/billing/me"
    preflight = httpx.options(me, headers={"Origin": APP, **asking})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, APP)
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    read = web.get(me, headers={"Origin": APP, **customer.headers})
    assert (read.status_code, read.headers["access-control-allow-origin"]) == (200, APP)
    assert "Origin" in read.headers["vary"]
    for origin in ("https://evil.example", f"{APP}.evil.example", "null", APP.upper(), f"{APP}:8443"):
        for answer in (
            httpx.options(me, headers={"Origin": origin, **asking}),
            web.get(me, headers={"Origin": origin, **customer.headers}),
        ):
            assert "access-control-allow-origin" not in answer.headers, origin
    for url in (f"{urls['admin']}/api/admin/whoami", f"{urls['side']}/credits", f"{urls['v1']}/v1/models"):
        answer = web.get(url, headers={"Origin": APP, **owner})
        assert "access-control-allow-origin" not in answer.headers, url
        assert "access-control-allow-origin" not in httpx.options(url, headers={"Origin": APP, **asking}).headers, url


def test_there_is_no_cors_unless_it_is_configured(embedded: Tollkeeper) -> None:
    customer = new_customer(embedded)
    answer = web.get(f"{embedded.url}/api/billing/me", headers={"Origin": APP, **customer.headers})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
