"""Usage by API and command: sums, CSV, the slim balance, and until when all that was charged is shown."""

import csv
import io
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.admins import bearer
from tests.support.customers import acting_for, new_customer
from tests.support.openapi import fits
from tests.support.servers import Tollkeeper, wait_until

pytestmark = pytest.mark.served


def test_usage_is_summed_listed_and_shown_as_of_when(stack: Tollkeeper) -> None:
    customer = new_customer(stack)
    for model in ("gpt-4o-mini", "gpt-4o-mini", "gpt-4o"):
        assert customer.chat(model=model, max_tokens=5).status_code == 200
    charged_by = int(time.time() * 1_000)
    url, headers = f"{stack.url}/api/billing", customer.headers

    def as_of() -> int:
        page = fits(web.get(f"{url}/usage", headers=headers), "/api/billing/usage")
        when = datetime.fromisoformat(page["asOf"]) if page["asOf"] else datetime.fromtimestamp(0, UTC)
        if when.timestamp() * 1_000 >= charged_by:
            assert len(page["data"]) == 3, "what was charged until then is there"
        return int(when.timestamp() * 1_000)

    wait_until(lambda: as_of() >= charged_by, 10, "all of it is booked")
    summary = fits(web.get(f"{url}/usage/summary", headers=headers), "/api/billing/usage/summary")
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    spent = 1_000_000_000 - customer.balance()
    (day,) = summary["data"]
    assert (day["day"], day["requests"], day["chargedMillicredits"]) == (today, 3, str(spent))
    assert summary["total"] == {name: value for name, value in day.items() if name != "day"}
    both = web.get(f"{url}/usage/summary", params={"groupBy": "model,key"}, headers=headers)
    rows = {row["model"]: row for row in fits(both, "/api/billing/usage/summary")["data"]}
    assert {model: row["requests"] for model, row in rows.items()} == {"gpt-4o": 1, "gpt-4o-mini": 2}
    assert {row["keyId"] for row in rows.values()} == {customer.key_id}
    assert "costMillicredits" not in both.text
    for wrong in ("hour", "account", "model,model", "day,tags"):
        refused = web.get(f"{url}/usage/summary", params={"groupBy": wrong}, headers=headers)
        assert fits(refused, "/api/billing/usage/summary")["error"]["param"] == "groupBy", wrong
    nothing = web.get(f"{url}/usage/summary", params={"until": "2020-01-01T00:00:00Z"}, headers=headers).json()
    assert (nothing["data"], nothing["total"]["requests"]) == ([], 0)

    table = web.get(f"{url}/usage/export", headers=headers)
    fits(table, "/api/billing/usage/export")
    lines = list(csv.DictReader(io.StringIO(table.text)))
    assert len(lines) == 3
    assert sum(int(line["chargedMillicredits"]) for line in lines) == spent
    assert {line["keyId"] for line in lines} == {customer.key_id}

    other = new_customer(stack)
    assert other.chat(max_tokens=5).status_code == 200
    stack.cli("drain")
    assert web.get(f"{url}/usage/summary", headers=other.headers).json()["total"]["requests"] == 1
    viewer = bearer(stack.cli("admin", "create", "viewer", "--role", "viewer")["adminKey"])
    everyone = web.get(f"{stack.url}/api/admin/usage/summary", params={"groupBy": "account"}, headers=viewer)
    sums = {row["accountId"]: row for row in fits(everyone, "/api/admin/usage/summary")["data"]}
    assert sums[customer.account_id]["requests"] == 3
    assert int(sums[customer.account_id]["costMillicredits"]) > 0
    mine = web.get(f"{stack.url}/api/admin/usage/export", params={"accountId": other.account_id}, headers=viewer)
    (line,) = csv.DictReader(io.StringIO(mine.text))
    assert line["accountId"] == other.account_id
    acted = web.get(f"{url}/usage/summary", headers=acting_for(customer)).json()
    assert acted["total"]["requests"] == 3

    by_model = stack.cli("usage", customer.account_id, "--by", "model", "--days", "2")["data"]
    assert [(row["model"], row["requests"]) for row in by_model] == [("gpt-4o", 1), ("gpt-4o-mini", 2)]
    assert "REQUESTS" in stack.run("usage", customer.account_id, "--by", "day", "model").stdout


def test_requests_are_told_apart_by_end_user_and_tag_however_they_are_made(stack: Tollkeeper) -> None:
    customer = new_customer(stack)
    named = {**customer.headers, "Tollkeeper-User": "ann", "Tollkeeper-Tags": "team-a, beta"}
    chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    said = {**chat, "safety_identifier": "ben", "metadata": {"feature": "search"}, "store": False}

    def ask(path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        answer = web.post(f"{stack.v1}{path}", json=body, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer

    ask("/chat/completions", chat, named)
    ask("/chat/completions", said, customer.headers)
    ask("/chat/completions", {**said, "stream": True}, named)
    ask("/embeddings", {"model": "text-embedding-3-small", "input": "hi", "user": "ben"}, customer.headers)
    later = {
        "model": "gpt-4o-mini",
        "input": "hi",
        "background": True,
        "max_output_tokens": 16,
        "metadata": {"job": "1"},
    }
    made = ask("/responses", later, named).json()
    url = f"{stack.url}/api/billing"

    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = fits(web.get(f"{url}/usage", headers=customer.headers), "/api/billing/usage")[
            "data"
        ]
        return found

    def polled() -> bool:
        web.get(f"{stack.v1}/responses/{made['id']}", headers=customer.headers, timeout=30)
        return len(rows()) == 5

    wait_until(polled, 20, "all of it is booked")
    labels = sorted((row["endpoint"], row["endUser"], row["tags"]) for row in rows())
    assert labels == [
        ("/v1/chat/completions", "ann", ["team-a", "beta"]),
        ("/v1/chat/completions", "ann", ["team-a", "beta", "feature:search"]),
        ("/v1/chat/completions", "ben", ["feature:search"]),
        ("/v1/embeddings", "ben", []),
        ("/v1/responses", "ann", ["team-a", "beta", "job:1"]),
    ]

    def sums(**query: str) -> dict[Any, int]:
        answer = web.get(f"{url}/usage/summary", params=query, headers=customer.headers)
        found = fits(answer, "/api/billing/usage/summary")
        assert found["total"]["requests"] <= 5
        name = {"user": "endUser"}.get(query["groupBy"], query["groupBy"])
        return {row[name]: row["requests"] for row in found["data"]}

    assert sums(groupBy="user") == {"ann": 3, "ben": 2}
    assert sums(groupBy="tag") == {None: 1, "beta": 3, "feature:search": 2, "job:1": 1, "team-a": 3}
    assert sums(groupBy="user", tag="feature:search") == {"ann": 1, "ben": 1}
    assert sums(groupBy="tag", endUser="ben") == {None: 1, "feature:search": 1}
    assert sums(groupBy="tag", tag="BETA") == {}
    listed = web.get(
        f"{url}/usage", params={"endUser": "ben", "tag": "feature:search"}, headers=customer.headers
    ).json()
    assert len(listed["data"]) == 1
    table = web.get(f"{url}/usage/export", params={"tag": "job:1"}, headers=customer.headers)
    (line,) = csv.DictReader(io.StringIO(table.text))
    assert (line["endUser"], line["tags"]) == ("ann", "team-a,beta,job:1")
    stack.cli("account", "close", customer.account_id)
    stack.cli("account", "forget-stored", customer.account_id)
    stack.cli("account", "erase", customer.account_id)
    erased = stack.cli("usage", customer.account_id)["data"]
    assert {(row["endUser"], len(row["tags"])) for row in erased} == {(None, 0)}
    assert stack.cli("reconcile")["ok"]


def test_the_slim_balance_is_small_live_and_the_one_of_me(stack: Tollkeeper) -> None:
    customer = new_customer(stack)
    assert customer.chat(max_tokens=5).status_code == 200
    slim = web.get(f"{stack.url}/api/billing/balance", headers=customer.headers)
    found = fits(slim, "/api/billing/balance")
    me = web.get(f"{stack.url}/api/billing/me", headers=customer.headers).json()
    assert len(slim.content) < 1_000
    for name in ("accountId", "balanceMillicredits", "heldMillicredits", "availableMillicredits", "availableCredits"):
        assert found[name] == me[name], name
    assert int(found["balanceMillicredits"]) < 1_000_000_000
    assert found["topUpUrl"].endswith("/credits")
    assert web.get(f"{stack.url}/api/billing/balance").status_code == 401
