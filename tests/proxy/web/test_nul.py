"""A NUL character, which PostgreSQL neither keeps nor compares, wherever text comes in: it is nobody's name, and never a 500."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.customers import Customer, new_customer
from tests.support.schema import in_thread, migrated
from tests.support.servers import Sandbox, Tollkeeper

SERVICE_KEY = "service-" + "k" * 32


@pytest.fixture
def server(make_tollkeeper: Any, fresh_postgres: str, sandbox: Sandbox) -> Iterator[Tollkeeper]:
    in_thread(migrated(fresh_postgres, served=True))
    server = make_tollkeeper(
        TOLLKEEPER_DATABASE__URL=fresh_postgres, TOLLKEEPER_BILLING__ALLOW_STORE="true", PORTAL_SERVICE_KEY=SERVICE_KEY
    ).start()
    yield server
    assert "ASGI" not in server.log()


def test_it_is_refused_wherever_it_comes_in(server: Tollkeeper) -> None:
    customer, owner = (
        new_customer(server, 10_000_000),
        bearer(server.cli("admin", "create", "o", "--role", "owner")["adminKey"]),
    )
    _by_customers(server, customer)
    _by_the_operators_app_and_people(server, customer, owner)
    assert customer.chat(max_tokens=5).status_code == 200


def _by_customers(server: Tollkeeper, customer: Customer) -> None:
    asked = {"model": "gpt-4o-mini", "input": "hi", "max_output_tokens": 16}
    bodies: list[dict[str, Any]] = [
        {"previous_response_id": "resp_\0"},
        {"input": [{"type": "item_reference", "id": "msg_\0"}]},
        {"model": "gpt-4o-mini\0"},
    ]
    for more in bodies:
        assert (
            web.post(f"{server.v1}/responses", json={**asked, **more}, headers=customer.headers, timeout=20).status_code
            == 404
        ), more
    for method in ("GET", "DELETE"):
        assert web.request(method, f"{server.v1}/responses/resp_%00", headers=customer.headers).status_code == 404
    for path in (
        "generations/%00",
        "purchases/cs_%00",
        "purchases/%00/receipt",
        "usage?model=a%00",
        "ledger?%00=1",
        "statement?month=%00",
    ):
        assert web.get(f"{server.url}/api/billing/{path}", headers=customer.headers).status_code == 400, path
    text = {"packageCode": "\\u0000"}  # which is six characters, and none of them NUL
    assert (
        web.post(f"{server.url}/api/billing/checkout", json=text, headers=customer.headers).json()["error"]["code"]
        == "invalid_value"
    )


def _by_the_operators_app_and_people(server: Tollkeeper, customer: Customer, owner: dict[str, str]) -> None:
    for account in ("\0", f"{customer.account_id}\0"):
        asked = {"accountId": account}
        assert web.post(f"{server.url}/api/portal/sessions", json=asked, headers=bearer(SERVICE_KEY)).status_code == 400
    base = f"{server.url}/api/admin"
    for path in (
        "audit?subject=%00",
        "accounts?query=a%00",
        "accounts/%00",
        "webhooks?state=%00",
        f"accounts/{customer.account_id}/usage?cursor=%00",
    ):
        assert web.get(f"{base}/{path}", headers=owner).status_code == 400, path
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "keys/key_%00/revoke", {"reason": "x"}),
        ("POST", "admins/adm_%00/revoke", {"reason": "x"}),
        ("POST", "jobs/finance%00/run", {"reason": "x"}),
        ("POST", "rates/activate", {"rateCardId": "x\0", "reason": "x"}),
        ("POST", f"accounts/{customer.account_id}/keys", {"models": ["\0"]}),
        ("PUT", "flags/model_allowlist", {"value": ["\0"], "reason": "x"}),
    ]
    for method, path, body in changes:
        assert web.request(method, f"{base}/{path}", json=body, headers=owner).status_code == 400, path
    with web.client(base_url=server.url, follow_redirects=True) as browser:
        assert enter(browser, owner["Authorization"].removeprefix("Bearer ")).status_code == 200
        for path in ("/admin?query=%00", "/admin/accounts/%00", "/admin/audit?before=%00", "/admin/webhooks?state=%00"):
            assert browser.get(path).status_code == 400, path
