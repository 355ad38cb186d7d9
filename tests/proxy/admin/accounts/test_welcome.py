"""Welcome credits: what the operator's app may give a new account, once, and to all of them in a day."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import web
from tests.support.admins import bearer
from tests.support.openapi import fits
from tests.support.servers import Sandbox, Tollkeeper

pytestmark = pytest.mark.served
PATH = "/api/admin/accounts/{account_id}/welcome"
MOST, A_DAY = 50, 200


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_ADMIN__WELCOME_CREDITS": str(MOST),
        "TOLLKEEPER_ADMIN__WELCOME_CREDITS_A_DAY": str(A_DAY),
    }
    server = Tollkeeper(new_folder("welcome"), environment).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def service(server: Tollkeeper) -> str:
    return str(server.cli("admin", "create", "our app", "--role", "service")["adminKey"])


def welcome(server: Tollkeeper, key: str, account: str, **body: str) -> tuple[int, Any]:
    answer = web.post(server.url + PATH.format(account_id=account), json=body, headers=bearer(key), timeout=20)
    return answer.status_code, fits(answer, PATH)


def account(server: Tollkeeper) -> str:
    return str(server.cli("account", "create", "new", "--no-key")["accountId"])


def test_an_account_is_welcomed_once_and_the_day_has_an_end(server: Tollkeeper, service: str) -> None:
    first = account(server)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: welcome(server, service, first), range(5)))
    assert [status for status, _ in found] == [200] * 5
    assert sorted(int(done["bookedMillicredits"]) for _, done in found) == [0, 0, 0, 0, 50_000]
    assert {done["postedMillicredits"] for _, done in found} == {"50000"}
    status, refused = welcome(server, service, first, credits="20")
    assert (status, refused["error"]["code"]) == (409, "reference_taken")
    second = account(server)
    for wrong, code in (("50.001", 403), ("0", 403), ("-1", 403), ("many", 400)):
        assert welcome(server, service, second, credits=wrong)[0] == code, wrong
    assert welcome(server, service, second, credits="12.5")[1]["postedMillicredits"] == "12500"
    assert welcome(server, service, "acct_missing")[0] == 404
    closed = account(server)
    server.cli("account", "close", closed)
    assert welcome(server, service, closed)[1]["error"]["code"] == "account_closed"
    another = server.cli("admin", "create", "another app", "--role", "service")["adminKey"]
    with ThreadPoolExecutor(6) as pool:  # 62.5 of 200 are given: two more fit, whoever gives them
        asked = [(account(server), key) for key in (service, another) for _ in range(3)]
        statuses = list(pool.map(lambda one: welcome(server, one[1], one[0])[0], asked))
    assert sorted(statuses) == [200, 200, 403, 403, 403, 403]
    (row,) = server.cli("ledger", first)["data"]
    assert (row["kind"], row["reason"], row["debitAccount"]) == ("adjustment", "Welcome credits", "promo")
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def test_nothing_is_given_where_nothing_is_configured(embedded: Tollkeeper) -> None:
    key = embedded.cli("admin", "create", "our app", "--role", "service")["adminKey"]
    status, refused = welcome(embedded, key, account(embedded))
    assert (status, refused["error"]["code"]) == (403, "grant_over_cap")
    assert "switched off" in refused["error"]["message"]
