"""Azure's v1 API and servers of open models as upstreams: what is sent there, what it costs, and what is refused."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from billing.money.pricing import load_catalogue
from tests.support import web
from tests.support.servers import Account, Tollkeeper, start_sandbox, wait_until
from tests.support.upstreams import Place, ask, write

pytestmark = pytest.mark.served
RICH = "10000000"
MODEL = "gpt-4o-mini"


def card(name: str, **prices: tuple[str, str]) -> dict[str, Any]:
    """A rate card of these models alone, at (input, output) in USD a million tokens."""
    row = load_catalogue()["models"][MODEL]
    models = {
        model: {**row, "rates": {"default": {"short": {"input": given, "output": made}}}}
        for model, (given, made) in prices.items()
    }
    return {**load_catalogue(), "catalogueId": name, "models": models}


@pytest.fixture(scope="module")
def azure() -> Iterator[Place]:
    server = start_sandbox(
        "--api-key", "sk-azure-canary", "--dialect", "azure", "--deployments", '{"acme-mini": "gpt-4o-mini"}'
    )
    more = {"dialect": "azure", "rate_card": "azure-1", "models": [MODEL], "deployments": {MODEL: "acme-mini"}}
    yield Place("azure", "sk-azure-canary", server, more)
    server.stop()


@pytest.fixture(scope="module")
def generic() -> Iterator[Place]:
    server = start_sandbox("--api-key", "sk-open-canary", "--dialect", "generic")
    more = {"dialect": "generic", "rate_card": "open-1", "include_usage": False, "models": ["acme-llama"]}
    yield Place("open", "sk-open-canary", server, more)
    server.stop()


@pytest.fixture(scope="module")
def openai() -> Iterator[Place]:
    server = start_sandbox("--api-key", "sk-openai-canary")
    yield Place("openai", "sk-openai-canary", server, {"models": ["gpt-4o", "gpt-4o-mini"]})
    server.stop()


@pytest.fixture(scope="module")
def served(new_folder: Callable[[str], Path], azure: Place, generic: Place, openai: Place) -> Iterator[Tollkeeper]:
    server = Tollkeeper(new_folder("dialects"), {"TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "10"})
    for document in (card("azure-1", **{MODEL: ("0.2", "0.8")}), card("open-1", **{"acme-llama": ("0.05", "0.1")})):
        path = server.folder / f"{document['catalogueId']}.json"
        path.write_text(json.dumps(document))
        server.cli("rates", "import", str(path))
    write(server, [openai, azure, generic])
    yield server.start()
    server.kill()


@pytest.fixture
def account(served: Tollkeeper, azure: Place, generic: Place, openai: Place) -> Account:
    for place in (azure, generic, openai):
        place.sandbox.clear()
        place.sandbox.settings(directive={})
    return served.account(RICH)


def rows_by_upstream(account: Account) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in account.usage():
        found.setdefault(row["upstream"], []).append(row)
    return found


def test_azure_is_sent_what_it_knows_and_costs_what_its_card_says(account: Account, azure: Place) -> None:
    # another test may have given it a rest
    wait_until(lambda: ask(account, stream=False).whole and azure.sandbox.record(), 10, "it serves")
    replies = [ask(account, stream=bool(number % 2), service_tier="auto") for number in range(8)]
    assert all(reply.whole for reply in replies), replies
    records = {row["clientRequestId"]: row for row in azure.sandbox.record() if row["status"] == 200}
    assert len(records) >= 2
    for row in rows_by_upstream(account)["azure"]:
        usage, sent = records[row["requestId"]]["usage"], records[row["requestId"]]["requestBody"]
        due = ceil(usage["prompt_tokens"] * Decimal("0.2") + usage["completion_tokens"] * Decimal("0.8"))
        assert (int(row["chargedMillicredits"]), int(row["costMillicredits"])) == (due, due)
        assert (sent["model"], "service_tier" in sent) == ("acme-mini", False)
        assert row["usageSource"] == "upstream"
    bodies = "".join(reply.body for reply in replies)
    assert "acme-mini" not in bodies
    assert "_filter" not in bodies, "what only Azure says would tell who served"


def test_azures_words_for_a_refused_prompt_are_ours(account: Account, azure: Place, openai: Place) -> None:
    words = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}
    error = {"message": words, "code": "content_filter", "innererror": inner}
    wait_until(lambda: ask(account, stream=False).whole and azure.sandbox.record(), 10, "it serves")
    azure.sandbox.clear()
    for place in (azure, openai):
        place.sandbox.settings(directive={"status": 400, "error": error})
    replies = [ask(account, stream=bool(number % 2)) for number in range(8)]
    assert {reply.status for reply in replies} == {400}
    served = {row["clientRequestId"] for row in azure.sandbox.record()}
    theirs = [json.loads(reply.body)["error"] for reply in replies if reply.request_id in served]
    assert theirs
    for told in theirs:
        assert (told["code"], told["type"]) == ("content_filter", "invalid_request_error")
        assert "azure" not in json.dumps(told).lower()


def test_what_azure_does_not_take_is_not_sent_there(account: Account, azure: Place) -> None:
    replies = [ask(account, stream=False, service_tier="flex", model="gpt-4o") for _ in range(2)]
    stored = web.post(
        f"{account.server.v1}/responses", json={"model": MODEL, "input": "hi"}, headers=account.headers, timeout=20
    )
    assert stored.status_code == 200, stored.text
    assert {reply.status for reply in replies} <= {200, 400}
    assert azure.sandbox.record() == []


def test_an_azure_that_is_out_of_quota_fails_no_request(account: Account, azure: Place) -> None:
    azure.sandbox.settings(
        directive={"status": 429, "error": {"message": "Requests have exceeded call rate limit.", "code": "429"}}
    )
    replies = [ask(account, stream=bool(number % 2)) for number in range(8)]
    assert all(reply.whole for reply in replies), replies
    assert rows_by_upstream(account).keys() == {"openai"}


def test_a_deployment_that_is_missing_fails_no_request(
    served: Tollkeeper, account: Account, azure: Place, generic: Place, openai: Place
) -> None:
    azure.more["deployments"] = {MODEL: "never-made"}
    write(served, [openai, azure, generic])
    try:
        replies = [ask(account, stream=False) for _ in range(12)]
        assert all(reply.whole for reply in replies), replies
    finally:
        azure.more["deployments"] = {MODEL: "acme-mini"}
        write(served, [openai, azure, generic])


@pytest.mark.parametrize("stream", [False, True])
def test_an_open_model_is_counted_where_its_stream_says_no_usage(
    account: Account, generic: Place, stream: bool
) -> None:
    reply = ask(account, stream=stream, model="acme-llama")
    assert reply.whole, reply
    (record,) = generic.sandbox.record()
    assert record["requestBody"].keys() == {"model", "messages", "stream"}
    (row,) = account.usage()
    assert row["usageSource"] == ("counted" if stream else "upstream")
    due = ceil(row["inputTokens"] * Decimal("0.05") + row["outputTokens"] * Decimal("0.1"))
    assert int(row["chargedMillicredits"]) == due
    assert row["outputTokens"] > 0


def test_what_no_card_prices_is_refused(account: Account, generic: Place) -> None:
    for model in ("acme-unpriced", "gpt-5"):
        reply = ask(account, stream=False, model=model)
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (404, "model_not_found"), reply
    assert generic.sandbox.record() == []
    assert account.usage() == []


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "rate_limit_error"), (503, "server_error"), (404, "invalid_request_error")]
)
def test_an_error_of_theirs_does_not_tell_who_they_are(
    account: Account, generic: Place, status: int, kind: str
) -> None:
    words = "Azure OpenAI at 10.1.2.3, deployment acme-llama-7b: nothing today."
    error = {"message": words, "code": "DeploymentNotFound"}
    raw = json.dumps({"error": error})
    generic.sandbox.settings(
        directive={"status": status, "body_raw": raw, "headers": {"content-type": "application/json"}}
    )
    reply = ask(account, stream=False, model="acme-llama")
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (status, kind), reply
    assert not any(name in reply.body for name in ("Azure", "10.1.2.3", "acme-llama-7b")), reply


def test_their_errors_are_told_in_openais_shape(account: Account, generic: Place) -> None:
    generic.sandbox.settings(directive={"status": 400, "error": {"message": "The prompt is too odd."}})
    reply = ask(account, stream=False, model="acme-llama")
    error = json.loads(reply.body)["error"]
    assert reply.status == 400
    assert "The prompt is too odd." in error["message"]
    assert {"message", "type", "param", "code"} <= error.keys()
