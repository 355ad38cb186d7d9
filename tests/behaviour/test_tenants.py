"""Two tenants share one upstream account and never meet: every id of one, tried by the other in every place, is a 404 without a call."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from openai import NotFoundError, OpenAI

from tests.support import web
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

MODEL = "gpt-4.1"  # 2 / cached 0.5 / out 8
STORING = {"TOLLKEEPER_BILLING__ALLOW_STORE": "true", "TOLLKEEPER_BILLING__ALLOW_BACKGROUND": "true"}


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Pair:
    server = served(
        **STORING,
        TOLLKEEPER_BILLING__ALLOWED_TOOLS='["web_search","file_search","code_interpreter","image_generation","mcp"]',
    )
    return Pair(new_customer(server, "1000"), new_customer(server, "1000"))


def client(customer: Customer) -> OpenAI:
    return OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)


def make(customer: Customer, text: str = "hello", **fields: Any) -> dict[str, Any]:
    answer = customer.post({"model": MODEL, "input": text, "max_output_tokens": 50, **fields}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def references(response: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bodies that name an object in every place there is."""
    made, item = response["id"], response["output"][0]["id"]
    tool = {"type": "code_interpreter", "container": "cntr_1"}
    return {
        "previous response": {"previous_response_id": made},
        "cache comparison": {"prompt_cache_options": {"comparison_response_id": made}},
        "conversation": {"conversation": "conv_1"},
        "conversation object": {"conversation": {"id": "conv_1"}},
        "prompt template": {"prompt": {"id": "pmpt_1"}},
        "item reference": {"input": [{"type": "item_reference", "id": item}]},
        "bare item": {"input": [{"type": "image_generation_call", "id": item}]},
        "item that carries nothing": {"input": [{"type": "image_generation_call", "id": item, "result": None}]},
        "item that carries less": {"input": [{"type": "compaction", "id": item, "encrypted_content": ""}]},
        "file in a message": {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        "image in a message": {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        "image in a tool's output": {
            "input": [
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image", "file_id": "file-1"}],
                }
            ]
        },
        "vector store": {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        "container": {"tools": [tool]},
        "container files": {
            "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]
        },
        "image mask": {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}]},
        "connector": {"tools": [{"type": "mcp", "server_label": "x", "connector_id": "connector_gmail"}]},
        "skill": {
            "tools": [{"type": "code_interpreter", "container": {"type": "auto", "skills": [{"skill_id": "s"}]}}]
        },
    }


PLACES = sorted(references({"id": "resp_1", "output": [{"id": "msg_1"}]}))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("known", [True, False], ids=["someone else's", "unknown"])
def test_an_id_in_a_body_that_is_not_ones_own_is_a_404_and_no_call(
    pair: Pair, sandbox: Sandbox, place: str, known: bool
) -> None:
    response = make(pair.owner) if known else {"id": "resp_never", "output": [{"id": "msg_never"}]}
    sandbox.clear()
    answer = pair.stranger.post(
        {"model": MODEL, "input": "hi", "max_output_tokens": 50, **references(response)[place]}, "/v1/responses"
    )
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"]
    assert sandbox.record() == []
    assert pair.stranger.balance() == 1_000_000


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/input_items"),
        ("GET", "?stream=true&starting_after=1"),
    ],
)
def test_a_response_is_its_makers_only(pair: Pair, sandbox: Sandbox, method: str, path: str) -> None:
    made = make(pair.owner)["id"]
    sandbox.clear()
    for response_id in (made, "resp_never"):
        url = f"{pair.stranger.server.v1}/responses/{response_id}{path}"
        answer = web.request(method, url, headers=pair.stranger.headers, timeout=10)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["message"].startswith(f"Response with id '{response_id}' not found")
    assert sandbox.record() == []


def test_a_maker_reads_and_deletes_its_response_and_pays_once(pair: Pair) -> None:
    before = pair.owner.balance()
    made = make(pair.owner)
    usage = made["usage"]
    charge = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    sdk = client(pair.owner)
    assert sdk.responses.retrieve(made["id"]).output_text == made["output"][0]["content"][0]["text"]
    assert sdk.responses.input_items.list(made["id"]).data
    sdk.responses.delete(made["id"])
    with pytest.raises(NotFoundError):
        sdk.responses.retrieve(made["id"])
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert before - pair.owner.balance() == charge


def test_a_response_that_builds_on_another_pays_for_its_context(pair: Pair) -> None:
    first = make(pair.owner, "tell me more " * 40)
    second = make(pair.owner, "go on", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    third = make(pair.owner, "and on", previous_response_id=second["id"])
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    paid = sum(
        usd_to_charge((one["usage"]["input_tokens"], "2"), (one["usage"]["output_tokens"], "8"))
        for one in (first, second, third)
    )
    assert pair.owner.balance() == 1_000_000 - paid  # none of them cost more than was held for it


def test_a_streamed_response_is_owned_from_its_first_byte(pair: Pair, sandbox: Sandbox) -> None:
    body = {"model": MODEL, "input": sandbox_says(output_tokens=40, chunk_interval_ms=30), "max_output_tokens": 60}
    with pair.owner.stream(body, "/v1/responses") as wire:
        first = wire.read_events(2)
        made = json.loads(first.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        url = f"{pair.owner.server.v1}/responses/{made}"
        for customer, calls in ((pair.stranger, 0), (pair.owner, 1)):  # only its maker's question reaches the upstream
            web.get(url, headers=customer.headers, timeout=10)
            assert len([row for row in sandbox.record() if row["method"] == "GET"]) == calls
        wire.read_all()


def test_what_openai_stores_by_default_is_stored(customer: Customer) -> None:
    made = make(customer)
    with client(customer) as openai:
        assert openai.responses.retrieve(made["id"]).id == made["id"]
    next_step = [{"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "and?"}]
    assert (
        customer.post({"model": MODEL, "input": next_step, "max_output_tokens": 50}, "/v1/responses").status_code == 200
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_chat_has_its_owner_before_it_is_shown(customer: Customer, stream: bool) -> None:
    answer = customer.post(customer.body(max_tokens=5, store=True, stream=stream))
    made = next(word for word in answer.text.split('"') if word.startswith("chatcmpl-"))
    with sqlite3.connect(customer.server.folder / "var" / "tollkeeper.db") as database:
        found = database.execute("SELECT kind, account_id FROM upstream_objects WHERE id = ?", (made,)).fetchall()
    assert found == [("chat_completion", customer.account_id)]


def test_nothing_is_stored_where_the_operator_does_not_allow_it(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    customer = new_customer(served(TOLLKEEPER_BILLING__ALLOW_STORE="false"), "1000")
    answer = customer.post({"model": MODEL, "input": "hi", "max_output_tokens": 50}, "/v1/responses")
    assert customer.served(answer.headers["x-request-id"])["requestBody"]["store"] is False
    refused = customer.post({"model": MODEL, "input": "hi", "max_output_tokens": 50, "store": True}, "/v1/responses")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    background = customer.post({"model": MODEL, "input": "hi", "background": True}, "/v1/responses")
    assert (background.status_code, background.json()["error"]["param"]) == (400, "background")
    stored = customer.post(customer.body(max_tokens=5, store=True))
    assert (stored.status_code, stored.json()["error"]["param"]) == (400, "store")
    step = [{"type": "item_reference", "id": answer.json()["output"][0]["id"]}]
    missing = customer.post({"model": MODEL, "input": step, "max_output_tokens": 50}, "/v1/responses").json()["error"]
    assert missing["code"] == "item_not_found"
    assert "billing.allow_store" in missing["message"]
    assert "providerOptions.openai.store" in missing["message"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_a_tenants_names_never_reach_the_upstream_as_they_are(pair: Pair, path: str) -> None:
    text: dict[str, Any] = (
        {"input": "hi"} if path.endswith("responses") else {"messages": [{"role": "user", "content": "hi"}]}
    )
    names = {"user": "alice", "safety_identifier": "alice@example.com", "prompt_cache_key": "alices-cache"}
    seen = []
    for customer in (pair.owner, pair.owner, pair.stranger):
        answer = customer.post({"model": MODEL, **text, **names}, path)
        assert answer.status_code == 200, answer.text
        sent = customer.served(answer.headers["x-request-id"])["requestBody"]
        assert "alice" not in json.dumps({name: sent[name] for name in names})
        seen.append(tuple(sent[name] for name in names))
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) == 3


BACKGROUND = {"model": MODEL, "max_output_tokens": 50, "background": True}


def test_a_background_response_is_settled_once_though_nobody_returns(pair: Pair) -> None:
    before = pair.owner.balance()
    answer = pair.owner.post({**BACKGROUND, "input": "hello " + sandbox_says(background_ms=300)}, "/v1/responses")
    assert answer.json()["status"] == "queued"
    assert pair.owner.held() > 0
    record = pair.owner.generation(answer.headers["x-request-id"])
    # upstream's own record of the job: counted there, priced here
    job = wait_until(
        lambda: [row for row in jobs(pair.owner, answer.json()["id"]) if row["usage"]], 10, "the job has ended"
    )[0]["usage"]
    assert int(record["chargedMillicredits"]) == usd_to_charge((job["input_tokens"], "2"), (job["output_tokens"], "8"))
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert before - pair.owner.balance() == int(record["chargedMillicredits"])
    assert client(pair.owner).responses.retrieve(answer.json()["id"]).status == "completed"
    assert pair.owner.balance() == before - int(record["chargedMillicredits"])


def test_a_cancelled_background_response_costs_what_the_upstream_says(pair: Pair) -> None:
    answer = pair.owner.post({**BACKGROUND, "input": "hello " + sandbox_says(queued_ms=5_000)}, "/v1/responses")
    assert client(pair.owner).responses.cancel(answer.json()["id"]).status == "cancelled"
    wait_until(lambda: pair.owner.held() == 0, 10, "it is settled")
    assert pair.owner.generation(answer.headers["x-request-id"])["chargedMillicredits"] == "0"


def jobs(customer: Customer, response_id: str) -> list[dict[str, Any]]:
    """The upstream's records of a response."""
    return [row for row in customer.sandbox.record() if row.get("responseId") == response_id and row.get("jobStatus")]
