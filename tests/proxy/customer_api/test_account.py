"""/api/billing as customers read it: figures that add up, pages that hold every row once, filters, nobody else's rows."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.openapi import DOCUMENT, fits
from tests.support.servers import Sandbox, Tollkeeper, wait_until


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


BAD = [
    ("/api/billing/usage", "limit", "0"),
    ("/api/billing/usage", "limit", "201"),
    ("/api/billing/usage", "limit", "-1"),
    ("/api/billing/usage", "limit", "ten"),
    ("/api/billing/usage", "limit", "1.5"),
    ("/api/billing/usage", "limit", ""),
    ("/api/billing/usage", "limit", "²"),
    ("/api/billing/usage", "limit", "9" * 30),
    ("/api/billing/usage", "cursor", "!!!"),
    ("/api/billing/usage", "cursor", ""),
    ("/api/billing/usage", "cursor", "é"),
    ("/api/billing/usage", "cursor", encoded("9" * 25 + ":x")),
    ("/api/billing/usage", "cursor", encoded("-1:x")),
    ("/api/billing/usage", "cursor", encoded("1:x\0y")),
    ("/api/billing/usage", "cursor", encoded("1:")),
    ("/api/billing/usage", "since", "yesterday"),
    ("/api/billing/usage", "until", "2026-13-01"),
    ("/api/billing/usage", "until", "1700000000000"),
    ("/api/billing/usage", "model", "a\0b"),
    ("/api/billing/usage", "keyId", "\0"),
    ("/api/billing/usage", "endpoint", "\0"),
    ("/api/billing/ledger", "limit", "0"),
    ("/api/billing/ledger", "cursor", "abc"),
    ("/api/billing/ledger", "cursor", "-5"),
    ("/api/billing/ledger", "cursor", "9" * 19),
]


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    home = new_folder("openapi")
    packages = json.dumps([{"code": "plus", "usd": "49.99", "bonus_percent": "5"}])
    server = Tollkeeper(
        home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, "TOLLKEEPER_PACKAGES": packages}
    ).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def http(server: Tollkeeper) -> Iterator[httpx.Client]:
    with web.client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server)


def use(customer: Customer, http: httpx.Client, times: int = 1, **body: Any) -> list[str]:
    """So many paid requests, booked; their ids."""
    ids = []
    for _ in range(times):
        answer = http.post("/v1/chat/completions", json={**customer.body, **body}, headers=customer.headers)
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-request-id"])
    url = f"/api/billing/generations/{ids[-1]}"
    wait_until(lambda: http.get(url, headers=customer.headers).status_code == 200, 10, "the last request is booked")
    return ids


@pytest.mark.parametrize(
    "path",
    [
        path
        for path, item in DOCUMENT["paths"].items()
        if item.get("get", {"security": []}).get("security") not in ([], [{"adminKey": []}])
    ],
)
def test_every_path_that_needs_a_key_refuses_without_one(path: str, http: httpx.Client) -> None:
    answer = http.get(path.format(request_id="req_x", model="gpt-4o-mini", purchase_id="pur_x"))
    assert answer.status_code == 401
    assert fits(answer, path)["error"]["code"] == "missing_api_key"


def test_me_fits_and_adds_up(customer: Customer, http: httpx.Client) -> None:
    (request_id,) = use(customer, http)
    me = fits(http.get("/api/billing/me", headers=customer.headers), "/api/billing/me")
    assert me["accountId"] == customer.account_id
    # 8 input and 1 output token of gpt-4o-mini at 0.15 and 0.60 USD a million: 1.8, rounded up
    assert me["balanceMillicredits"] == me["availableMillicredits"] == str(1_000_000_000 - 2)
    assert me["heldMillicredits"] == "0"
    assert me["balanceCredits"] == me["availableCredits"] == 999_999.998
    assert me["balanceUsd"] == 999.999998
    assert [row["requestId"] for row in me["recentUsage"]] == [request_id]
    assert [(row["kind"], row["amountMillicredits"]) for row in me["recentLedger"]] == [
        ("usage", "-2"),
        ("adjustment", "1000000000"),
    ]
    # 49.99 USD is 49,990 credits; 5 % of it are 2,499.5
    assert me["packages"] == [
        {
            "code": "plus",
            "usd": "49.99",
            "bonusPercent": "5",
            "bonusExpiresDays": None,
            "millicredits": "52489500",
            "credits": 52_489.5,
        }
    ]
    (rates,) = [rates for rates in me["activeRates"] if rates["model"] == "gpt-4o-mini"]
    assert rates["usdPerMillionTokens"] == {"input": "0.15", "cached_input": "0.075", "output": "0.6"}


def test_the_record_of_a_request_fits_and_is_whole(
    customer: Customer, http: httpx.Client, session_sandbox: Sandbox
) -> None:
    (request_id,) = use(customer, http, max_tokens=9)
    path = "/api/billing/generations/{request_id}"
    record = fits(http.get(f"/api/billing/generations/{request_id}", headers=customer.headers), path)
    (row,) = session_sandbox.record(clientRequestId=request_id)
    assert record["requestId"] == request_id
    assert (record["inputTokens"], record["outputTokens"]) == (row["usage"]["prompt_tokens"], 9)
    assert record["chargedMillicredits"] == str(-(-(row["usage"]["prompt_tokens"] * 15 + 9 * 60) // 100))
    assert (record["model"], record["endpoint"], record["keyId"]) == (
        "gpt-4o-mini",
        "/v1/chat/completions",
        customer.key_id,
    )
    assert (record["usageSource"], record["outcome"], record["status"], record["free"]) == (
        "upstream",
        "completed",
        200,
        False,
    )
    assert record["rates"]["usdPerMillionTokens"]["output"] == "0.6"


def test_health_readiness_metrics_and_models_fit(customer: Customer, http: httpx.Client) -> None:
    assert fits(http.get("/healthz"), "/healthz") == {"status": "alive"}
    assert fits(http.get("/readyz"), "/readyz") == {"status": "ready", "problems": {}, "notes": {}}
    assert "openai_calls_total" in fits(http.get("/metrics"), "/metrics")
    listed = fits(http.get("/v1/models", headers=customer.headers), "/v1/models")
    one = fits(http.get("/v1/models/gpt-4o-mini", headers=customer.headers), "/v1/models/{model}")
    assert one in listed["data"]
    missing = fits(http.get("/v1/models/gpt-imaginary", headers=customer.headers), "/v1/models/{model}")
    assert missing["error"]["code"] == "model_not_found"


def test_a_blocked_account_gets_the_documented_403(customer: Customer, http: httpx.Client) -> None:
    customer.server.cli("account", "block", customer.account_id)

    def blocked() -> httpx.Response | None:
        answer = http.get("/api/billing/me", headers=customer.headers)
        return answer if answer.status_code == 403 else None

    answer = wait_until(blocked, 5, "the account is blocked")
    assert fits(answer, "/api/billing/me")["error"]["code"] == "account_blocked"


@pytest.mark.parametrize(
    ("path", "name"), [("/api/billing/usage", "requestId"), ("/api/billing/ledger", "referenceId")]
)
def test_pages_hold_every_row_once_while_new_ones_arrive(
    path: str, name: str, customer: Customer, http: httpx.Client
) -> None:
    ids = use(customer, http, 11)
    found: list[str] = []
    moments: list[str] = []
    cursor, pages = None, 0
    while True:
        query = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = fits(http.get(path, params=query, headers=customer.headers), path)
        found += [row[name] for row in page["data"]]
        moments += [row["createdAt"] for row in page["data"]]
        pages += 1
        cursor = page["nextCursor"]
        if cursor is None:
            break
        assert len(page["data"]) == 3
        use(customer, http)  # rows that come in front of what is read already
    expected = ids[::-1] + ([f"grant_{customer.account_id}"] if name == "referenceId" else [])
    # one flush books requests in any order, so rows of one moment may stand either way round
    assert sorted(found) == sorted(expected)
    assert moments == sorted(moments, reverse=True)
    assert pages == 4


def test_a_page_that_is_exactly_full_is_the_last_one(customer: Customer, http: httpx.Client) -> None:
    use(customer, http, 2)
    page = http.get("/api/billing/usage", params={"limit": "2"}, headers=customer.headers).json()
    assert (len(page["data"]), page["nextCursor"]) == (2, None)


def test_an_account_without_rows_has_one_empty_page(server: Tollkeeper, http: httpx.Client) -> None:
    nobody = new_customer(server, 0)
    for path in ("/api/billing/usage", "/api/billing/ledger"):
        page = fits(http.get(path, headers=nobody.headers), path)
        page.pop("asOf", None)
        assert page == {"data": [], "nextCursor": None}


def test_filters_choose_the_rows(customer: Customer, http: httpx.Client) -> None:
    (first,) = use(customer, http)
    answer = http.post(
        "/v1/embeddings", json={"model": "text-embedding-3-small", "input": "hi"}, headers=customer.headers
    )
    second = answer.headers["x-request-id"]
    url = f"/api/billing/generations/{second}"
    wait_until(lambda: http.get(url, headers=customer.headers).status_code == 200, 10, "it is booked")
    moment = http.get(url, headers=customer.headers).json()["createdAt"]

    def ids(**query: str) -> list[str]:
        page = fits(http.get("/api/billing/usage", params=query, headers=customer.headers), "/api/billing/usage")
        return [row["requestId"] for row in page["data"]]

    assert ids() == [second, first]
    assert ids(model="gpt-4o-mini") == [first]
    assert ids(model="gpt-4o") == []
    assert ids(endpoint="/v1/embeddings") == [second]
    assert ids(keyId=customer.key_id) == [second, first]
    assert ids(keyId="key_0") == []
    assert ids(since=moment) == [second]
    assert ids(until=moment) == [first]
    assert ids(since="2020-01-01", until="2021-01-01T00:00:00+05:00") == []
    assert ids(model="gpt-4o-mini", endpoint="/v1/embeddings") == []


def test_nobody_reads_anothers_rows(server: Tollkeeper, customer: Customer, http: httpx.Client) -> None:
    (request_id,) = use(customer, http)
    other = new_customer(server, 5_000)
    path = "/api/billing/generations/{request_id}"
    missing = fits(http.get(f"/api/billing/generations/{request_id}", headers=other.headers), path)
    assert missing["error"]["code"] == "request_not_found"
    assert http.get("/api/billing/usage", params={"keyId": customer.key_id}, headers=other.headers).json()["data"] == []
    page = http.get("/api/billing/ledger", params={"cursor": "999999"}, headers=other.headers).json()
    assert [row["amountMillicredits"] for row in page["data"]] == ["5000"]
    # the other account's cursor points into one's own rows only
    cursor = base64.urlsafe_b64encode(f"{10**14}:{request_id}".encode()).decode().rstrip("=")
    assert http.get("/api/billing/usage", params={"cursor": cursor}, headers=other.headers).json()["data"] == []


@pytest.mark.parametrize(("path", "name", "value"), BAD)
def test_a_bad_parameter_is_400_and_named(
    path: str, name: str, value: str, server: Tollkeeper, http: httpx.Client, reader: Customer
) -> None:
    answer = http.get(path, params={name: value}, headers=reader.headers)
    assert answer.status_code == 400, answer.text
    assert fits(answer, path)["error"]["param"] == name


@pytest.fixture(scope="module")
def reader(server: Tollkeeper) -> Customer:
    return new_customer(server, 0)


def test_on_postgresql_bad_parameters_are_400_and_odd_ones_find_nothing(
    make_tollkeeper: Any, empty_postgres: str, sandbox: Sandbox
) -> None:
    server = make_tollkeeper(TOLLKEEPER_DATABASE__URL=empty_postgres).start()
    customer = new_customer(server, 1_000_000)
    with web.client(base_url=server.url, timeout=20) as http:
        (request_id,) = use(customer, http)
        for path, name, value in BAD:
            answer = http.get(path, params={name: value}, headers=customer.headers)
            assert (answer.status_code, fits(answer, path)["error"]["param"]) == (400, name), (path, name, value)
        for query in (
            {"model": "é" * 300},
            {"since": "9999-12-31"},
            {"until": "0001-01-01"},
            {"cursor": encoded("0:x")},
        ):
            answer = http.get("/api/billing/usage", params=query, headers=customer.headers)
            assert answer.status_code == 200, (query, answer.text)
            assert fits(answer, "/api/billing/usage")["data"] == []
        bad = fits(
            http.get("/api/billing/generations/%00", headers=customer.headers), "/api/billing/generations/{request_id}"
        )
        assert bad["error"]["param"] == "request_id"
        for path in ("/api/billing/purchases/{purchase_id}", "/api/billing/purchases/{purchase_id}/receipt"):
            bad = fits(http.get(path.format(purchase_id="cs_%00"), headers=customer.headers), path)
            assert bad["error"]["param"] == "purchase_id"
        me = fits(http.get("/api/billing/me", headers=customer.headers), "/api/billing/me")
        assert [row["requestId"] for row in me["recentUsage"]] == [request_id]
        found = fits(
            http.get("/api/billing/ledger?cursor=" + "9" * 18, headers=customer.headers), "/api/billing/ledger"
        )
        assert len(found["data"]) == 2
