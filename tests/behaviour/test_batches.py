"""Batches through the official SDK: held for line by line, refused with the line's number, charged once by what was done."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI, PermissionDeniedError

from tests.support import web
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import UPSTREAM_KEY, Sandbox, Tollkeeper, sandbox_says, wait_until

CHAT = "/v1/chat/completions"
MODEL = "gpt-4.1"  # in batches 1 / out 4
START = 1_000_000
QUICK = {"TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.1"}
OUTPUTS = ("output_file_id", "error_file_id")


class Pair(NamedTuple):
    owner: Customer
    stranger: Customer


@pytest.fixture
def pair(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Iterator[Pair]:
    server = served(**QUICK)
    yield Pair(new_customer(server, "1000"), new_customer(server, "1000"))
    sandbox.settings(batch_ms=200, batch_expires_ms=0, batch_fails=False)


@pytest.fixture
def sdk(pair: Pair) -> OpenAI:
    return client(pair.owner)


def client(customer: Customer) -> OpenAI:
    return OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)


def line(name: str, text: str = "hello", model: str = MODEL, url: str = CHAT, **body: Any) -> dict[str, Any]:
    full = {"model": model, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 60, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": full}


def upload(sdk: OpenAI, *lines: dict[str, Any] | str) -> str:
    rows = [row if isinstance(row, str) else json.dumps(row) for row in lines]
    return sdk.files.create(file=("in.jsonl", "\n".join(rows).encode()), purpose="batch").id


def create(sdk: OpenAI, file_id: str, endpoint: Any = CHAT, **more: Any) -> Any:
    return sdk.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more)


def ended(sdk: OpenAI, batch_id: str) -> Any:
    def look() -> Any:
        batch = sdk.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return wait_until(look, 20, "the batch has ended")


def rows_of(sdk: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(row) for row in sdk.files.content(file_id).text.splitlines()]


def due(rows: list[dict[str, Any]], price: tuple[str, str] = ("1", "4")) -> int:
    """The lines' own usage at batch prices, all of it rounded once."""
    parts: list[tuple[int, str]] = []
    for row in rows:
        usage = row["response"]["body"]["usage"]
        parts.append((usage.get("prompt_tokens", usage.get("input_tokens")), price[0]))
        parts.append((usage.get("completion_tokens", usage.get("output_tokens", 0)), price[1]))
    return usd_to_charge(*parts)


def upstream_file(customer: Customer, file_id: str) -> bytes:
    """A file as upstream has it, asked with the operator's key; nothing when it has none."""
    answer = web.get(
        f"{customer.sandbox.url}/files/{file_id}/content",
        headers={"Authorization": f"Bearer {UPSTREAM_KEY}"},
        timeout=10,
    )
    return answer.content if answer.status_code == 200 else b""


def only_charge(customer: Customer) -> dict[str, Any]:
    (row,) = wait_until(customer.usage, 20, "it is charged")
    assert customer.held() == 0
    assert START - customer.balance() == int(row["chargedMillicredits"])
    found: dict[str, Any] = row
    return found


def test_from_the_upload_to_the_output_charged_to_the_millicredit(pair: Pair, sdk: OpenAI) -> None:
    file_id = upload(sdk, line("a"), line("b", "tell me more " * 20), line("c", sandbox_says(output_tokens=7)))
    made = create(sdk, file_id, metadata={"job": "nightly"})
    assert made.input_file_id == file_id
    assert pair.owner.held() > 0
    batch = ended(sdk, made.id)
    assert (batch.status, batch.input_file_id, batch.metadata) == ("completed", file_id, {"job": "nightly"})
    rows = rows_of(sdk, batch.output_file_id)
    assert sorted(row["custom_id"] for row in rows) == ["a", "b", "c"]
    charged = only_charge(pair.owner)
    assert int(charged["chargedMillicredits"]) == due(rows)
    assert (charged["endpoint"], charged["serviceTier"], charged["outcome"]) == ("/v1/batches", "batch", "completed")
    assert [one.id for one in sdk.batches.list()] == [made.id]
    assert {one.id for one in sdk.files.list()} == {file_id, batch.output_file_id}
    assert pair.owner.server.cli("reconcile") == {"ok": True, "findings": []}


def test_what_upstream_runs_is_what_was_held_for(pair: Pair, sdk: OpenAI) -> None:
    """The sent file has our output cap, stores nothing, names the tenant's own user, and is deleted at the end."""
    pair.owner.sandbox.settings(batch_ms=1_500)
    body = {"model": "gpt-4o-mini", "input": "hello", "user": "me"}
    file_id = upload(sdk, {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body})
    made = create(sdk, file_id, "/v1/responses")
    (asked,) = [row for row in pair.owner.sandbox.record() if row["path"] == "/v1/batches" and row["method"] == "POST"]
    sent_id = asked["requestBody"]["input_file_id"]
    assert sent_id != file_id
    with pytest.raises(NotFoundError):  # no path leads to it
        sdk.files.content(sent_id)
    (row,) = map(json.loads, upstream_file(pair.owner, sent_id).splitlines())
    assert (row["body"]["store"], row["body"]["user"][:3], row["custom_id"]) == (False, "tk_", "a")
    ended(sdk, made.id)
    wait_until(lambda: not upstream_file(pair.owner, sent_id), 10, "the sent file is deleted")


def test_half_of_a_pair_is_read_in_a_line_as_in_a_request_and_charged(pair: Pair, sdk: OpenAI) -> None:
    """A text cut in the middle of an emoji, in the name and in the text, and in what the model answers."""
    odd = json.dumps(line("a")).replace('"hello"', r'"hello \ud83d"').replace('"a"', r'"a\ud83d"')
    batch = ended(sdk, create(sdk, upload(sdk, odd, line("b"))).id)
    rows = rows_of(sdk, batch.output_file_id)
    assert sorted(row["custom_id"] for row in rows) == ["a\ufffd", "b"]
    assert int(only_charge(pair.owner)["chargedMillicredits"]) == due(rows)


@pytest.mark.parametrize(
    ("second", "code", "status", "words"),
    [
        ("{", "invalid_json_line", 400, "no JSON object"),
        ("[1]", "invalid_json_line", 400, "no JSON object"),
        (line("a"), "duplicate_custom_id", 400, "given twice"),
        ({**line("b"), "method": "GET"}, "invalid_value", 400, "must be POST"),
        (line("b", url="/v1/responses"), "invalid_url", 400, CHAT),
        ({**line("b"), "more": 1}, "unknown_parameter", 400, "more"),
        ({**line("b"), "custom_id": 5}, "invalid_type", 400, "string"),
        ({"custom_id": "b", "method": "POST", "url": CHAT}, "missing_required_parameter", 400, "body"),
        (line("b", stream=True), "unsupported_parameter", 400, "streamed"),
        (line("b", store=True), "unsupported_parameter", 400, "store"),
        (line("b", service_tier="priority"), "invalid_value", 400, "service_tier"),
        (line("b", model="gpt-nothing"), "model_not_found", 404, "gpt-nothing"),
        (line("b", model="gpt-audio-1.5"), "unsupported_model", 400, "no batch price"),
        (line("b", model="text-embedding-3-small"), "model_not_found", 404, "does not work"),
        (line("b", max_completion_tokens=10**9), "invalid_value", 400, "too large"),
        (line("b", surprise=True), "unknown_parameter", 400, "surprise"),
        (line("b", web_search_options={}), "unsupported_tool", 400, "batch price"),
        (line("b", model="gpt-4o-search-preview"), "unsupported_tool", 400, "batch price"),
    ],
)
def test_a_line_that_would_be_refused_refuses_the_batch_with_its_number(
    pair: Pair, sdk: OpenAI, second: Any, code: str, status: int, words: str
) -> None:
    file_id = upload(sdk, line("a"), "", second, "{")
    with pytest.raises(APIStatusError) as refused:
        create(sdk, file_id)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    body: Any = refused.value.body
    assert body["message"].startswith("line 3: ")
    assert words in body["message"]
    assert (pair.owner.held(), pair.owner.balance()) == (0, START)
    assert not sdk.batches.list().data
    assert not [row for row in pair.owner.sandbox.record() if row["path"] == "/v1/batches"]


def test_lines_of_responses_are_refused_for_what_only_live_requests_have(sdk: OpenAI, pair: Pair) -> None:
    conversation = sdk.conversations.create().id
    for field, words in (
        ({"background": True}, "background"),
        ({"conversation": conversation}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"previous_response_id": "resp_of_nobody"}, "not found"),
    ):
        body = {"model": MODEL, "input": "hello", "max_output_tokens": 20, **field}
        file_id = upload(sdk, {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body})
        with pytest.raises(APIStatusError, match="line 1: ") as refused:
            create(sdk, file_id, "/v1/responses")
        assert words in str(refused.value)
    assert pair.owner.held() == 0


def searching(name: str, store: str, text: str, **body: Any) -> dict[str, Any]:
    """A line of /v1/responses that searches a store."""
    tool = {"type": "file_search", "vector_store_ids": [store]}
    full = {"model": MODEL, "input": text, "tools": [tool], "max_tool_calls": 1, "max_output_tokens": 20, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": full}


def store_of(sdk: OpenAI) -> str:
    file_id = sdk.files.create(file=("a.txt", b"The refund policy: whales within 30 days."), purpose="assistants").id
    store_id = sdk.vector_stores.create(file_ids=[file_id]).id
    wait_until(lambda: sdk.vector_stores.retrieve(store_id).file_counts.completed == 1, 20, "its file is read")
    return store_id


def test_lines_search_their_owners_stores_and_each_call_is_charged_in_full(pair: Pair, sdk: OpenAI) -> None:
    """What is found is read at batch prices; the call itself has no discount."""
    store = store_of(sdk)
    ask = "the refund policy " + sandbox_says(calls=["file_search"])
    rest = {"include": ["file_search_call.results"]}
    lines = (searching("a", store, ask, **rest), searching("b", store, ask), searching("c", store, "no search"))
    batch = ended(sdk, create(sdk, upload(sdk, *lines), "/v1/responses").id)
    rows = rows_of(sdk, batch.output_file_id)
    found = [item for row in rows for item in row["response"]["body"]["output"] if item["type"] == "file_search_call"]
    assert len(found) == 2
    assert any("whales" in hit["text"] for item in found for hit in item["results"] or ())
    charged = only_charge(pair.owner)
    assert int(charged["chargedMillicredits"]) == due(rows) + 2 * 2_500
    shown = web.get(
        f"{pair.owner.server.url}/api/billing/generations/{charged['requestId']}", headers=pair.owner.headers
    )
    assert shown.json()["toolCalls"] == {"file_search": 2}
    (made,) = (row for row in pair.owner.sandbox.record() if row["path"] == "/v1/batches" and row["method"] == "POST")
    assert made["toolUsage"]["file_search"] == {"num_requests": 2}
    assert pair.owner.server.cli("reconcile") == {"ok": True, "findings": []}


def test_a_strangers_store_refuses_the_batch_with_the_lines_number(pair: Pair, sdk: OpenAI) -> None:
    own, foreign = store_of(sdk), store_of(client(pair.stranger))
    file_id = upload(sdk, searching("a", own, "x"), searching("b", foreign, "x"))
    with pytest.raises(NotFoundError, match="line 2: Vector store with id") as refused:
        create(sdk, file_id, "/v1/responses")
    assert refused.value.code == "vector_store_not_found"
    assert pair.owner.held() == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_wrong_request_for_a_batch_is_a_400(pair: Pair, fields: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", **fields}
    answer = pair.owner.post(body, "/v1/batches")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_what_upstream_refuses_is_given_back_in_its_words(pair: Pair, sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="metadata") as refused:
        create(sdk, upload(sdk, line("a")), metadata="no object")
    assert refused.value.param == "metadata"
    assert (pair.owner.held(), pair.owner.balance()) == (0, START)
    assert not sdk.batches.list().data


def test_a_file_without_lines_is_a_400(sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        create(sdk, upload(sdk, "", ""))
    assert refused.value.code == "empty_file"


def test_a_strangers_file_and_batch_are_404(pair: Pair, sdk: OpenAI) -> None:
    other = client(pair.stranger)
    file_id = upload(sdk, line("a"))
    with pytest.raises(NotFoundError):
        create(other, file_id)
    made = create(sdk, file_id)
    batch = ended(sdk, made.id)
    for ask in (
        lambda: other.batches.retrieve(made.id),
        lambda: other.batches.cancel(made.id),
        lambda: other.files.content(batch.output_file_id),
        lambda: other.files.delete(batch.output_file_id),
    ):
        with pytest.raises(NotFoundError):
            ask()
    assert not other.batches.list().data
    assert rows_of(sdk, batch.output_file_id)


def test_cancelled_it_charges_what_was_done(pair: Pair, sdk: OpenAI) -> None:
    pair.owner.sandbox.settings(batch_ms=3_000)
    made = create(sdk, upload(sdk, *(line(f"l{number}") for number in range(30))))
    wait_until(lambda: sdk.batches.retrieve(made.id).request_counts.completed >= 3, 10, "some lines are done")
    sdk.batches.cancel(made.id)
    batch = ended(sdk, made.id)
    assert batch.status == "cancelled"
    rows = rows_of(sdk, batch.output_file_id)
    assert 3 <= len(rows) < 30
    assert len(rows_of(sdk, batch.error_file_id)) == 30 - len(rows)
    charged = only_charge(pair.owner)
    assert (int(charged["chargedMillicredits"]), charged["outcome"]) == (due(rows), "client_gone")


def test_expired_it_charges_what_was_done(pair: Pair, sdk: OpenAI) -> None:
    pair.owner.sandbox.settings(batch_ms=2_000, batch_expires_ms=1_000)
    made = create(sdk, upload(sdk, *(line(f"l{number}") for number in range(10))))
    batch = ended(sdk, made.id)
    assert batch.status == "expired"
    rows = rows_of(sdk, batch.output_file_id)
    assert len(rows) == 5
    assert int(only_charge(pair.owner)["chargedMillicredits"]) == due(rows)


def test_one_that_fails_validation_costs_nothing(pair: Pair, sdk: OpenAI) -> None:
    pair.owner.sandbox.settings(batch_fails=True)
    batch = ended(sdk, create(sdk, upload(sdk, line("a"))).id)
    assert batch.status == "failed"
    assert batch.errors.data[0].line == 1
    wait_until(lambda: pair.owner.held() == 0, 10, "nothing is held")
    assert pair.owner.balance() == START
    assert not pair.owner.usage()


def test_lines_that_fail_cost_nothing_and_usage_that_is_missing_is_counted(pair: Pair, sdk: OpenAI) -> None:
    lost = sandbox_says(usage=None, text="one two three four five")
    made = create(sdk, upload(sdk, line("a", sandbox_says(status=500)), line("b"), line("c", lost)))
    batch = ended(sdk, made.id)
    assert [row["custom_id"] for row in rows_of(sdk, batch.error_file_id)] == ["a"]
    rows = rows_of(sdk, batch.output_file_id)
    (whole,) = [row for row in rows if row["custom_id"] == "b"]
    charged = only_charge(pair.owner)
    upstream = next(row for row in pair.owner.sandbox.record() if row["responseId"] == made.id)["usage"]
    assert (charged["inputTokens"], charged["outputTokens"]) == (
        upstream["input_tokens"],
        upstream["output_tokens"],
    )
    assert int(charged["chargedMillicredits"]) == usd_to_charge(
        (upstream["input_tokens"], "1"), (upstream["output_tokens"], "4")
    )
    assert int(charged["chargedMillicredits"]) > due([whole])


def test_embeddings_and_several_models_are_priced_each_by_its_own(pair: Pair, sdk: OpenAI) -> None:
    def row(name: str, model: str) -> dict[str, Any]:
        body = {"model": model, "input": ["hello there", "and you?"]}
        return {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body}

    file_id = upload(sdk, row("a", "text-embedding-3-small"), row("b", "text-embedding-3-large"))
    batch = ended(sdk, create(sdk, file_id, "/v1/embeddings").id)
    price = {"a": "0.01", "b": "0.065"}
    parts = [
        (one["response"]["body"]["usage"]["prompt_tokens"], price[one["custom_id"]])
        for one in rows_of(sdk, batch.output_file_id)
    ]
    assert int(only_charge(pair.owner)["chargedMillicredits"]) == usd_to_charge(*parts)
    assert pair.owner.server.cli("reconcile") == {"ok": True, "findings": []}


def test_what_is_not_affordable_is_a_402_with_what_is_needed(pair: Pair, sdk: OpenAI) -> None:
    file_id = upload(sdk, *(line(f"l{number}", max_completion_tokens=30_000) for number in range(10)))
    pair.owner.server.cli("grant", pair.owner.account_id, "-500", "--reason", "test")
    pair.owner.wait_balance(500_000)
    answer = pair.owner.post({"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}, "/v1/batches")
    assert answer.status_code == 402, answer.text
    assert 1_200 < answer.json()["requiredCredits"] < 1_300  # 10 lines of 30,000 tokens at 4 USD a million
    assert pair.owner.held() == 0


def test_of_a_keys_limits_the_spend_limit_is_of_batches_too(pair: Pair, new_customer: Callable[..., Customer]) -> None:
    limits = {"spend_limit": 100_000, "spend_period": "month", "tokens_per_minute": 10, "concurrency": 1}
    customer = new_customer(pair.owner.server, "1000", **limits)
    sdk = client(customer)
    dear = upload(sdk, line("a", max_completion_tokens=30_000))
    answer = customer.post({"input_file_id": dear, "endpoint": CHAT, "completion_window": "24h"}, "/v1/batches")
    assert (answer.status_code, answer.json()["limitSource"]) == (402, "key_limit"), answer.text
    batch = ended(sdk, create(sdk, upload(sdk, line("a"), line("b"))).id)
    assert int(only_charge(customer)["chargedMillicredits"]) == due(rows_of(sdk, batch.output_file_id))


def test_where_nothing_is_charged_a_batch_is_recorded_and_free(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    off = {"TOLLKEEPER_BILLING__CHARGING_ENABLED": "false", "TOLLKEEPER_BILLING__CHARGING_DISABLED_MODE": "free"}
    customer = new_customer(served(**QUICK, **off), "0")
    sandbox.settings(batch_ms=1_000)
    sdk = client(customer)
    made = create(sdk, upload(sdk, line("a")))
    assert customer.held() == 0
    ended(sdk, made.id)
    (row,) = wait_until(customer.usage, 20, "it is recorded")
    assert (int(row["chargedMillicredits"]), row["inputTokens"] > 0, customer.balance()) == (0, True, 0)
    sandbox.settings(batch_ms=200)


def test_text_is_counted_where_its_bytes_would_not_be_affordable(pair: Pair, sdk: OpenAI) -> None:
    """300,000 words cost at most some 375 credits to read in a batch; by their bytes they would be 1,900."""
    file_id = upload(sdk, *(line(f"l{number}", "word " * 100_000) for number in range(3)))
    made = create(sdk, file_id)
    assert 375_000 <= pair.owner.held() < 380_000  # a cache write costs a quarter more
    batch = ended(sdk, made.id)
    assert int(only_charge(pair.owner)["chargedMillicredits"]) == due(rows_of(sdk, batch.output_file_id))


def test_the_end_is_shown_once_it_is_charged(pair: Pair, sdk: OpenAI) -> None:
    """A client that could delete its output before it was read would have it for nothing."""
    pair.owner.sandbox.settings(batch_ms=0)
    file_id = upload(sdk, line("a"))
    for number in range(1, 6):
        made = create(sdk, file_id)
        assert (made.status, made.output_file_id) == ("finalizing", None)  # though it ended at once
        assert ended(sdk, made.id).output_file_id
        wait_until(lambda: pair.owner.held() == 0, 5, "it is charged")
        assert sdk.batches.list(limit=1).data[0].status == "completed"
        wait_until(lambda number=number: len(pair.owner.usage()) == number, 10, "it is booked")


def test_pages_of_batches(pair: Pair, sdk: OpenAI) -> None:
    file_id = upload(sdk, line("a"))
    made = [create(sdk, file_id, metadata={"number": str(number)}).id for number in range(3)]
    first = sdk.batches.list(limit=2)
    assert [one.id for one in first.data] == [*reversed(made)][:2]
    assert [one.id for one in sdk.batches.list(limit=2)] == [*reversed(made)]
    assert all(one.input_file_id == file_id for one in first.data)
    for name in made:
        ended(sdk, name)


def test_what_a_batch_reads_is_not_deleted_under_it(pair: Pair, sdk: OpenAI) -> None:
    """Neither by its client, who deletes the file that it named, nor when all that an account stored is deleted."""
    pair.owner.sandbox.settings(batch_ms=2_500)
    file_id = upload(sdk, line("a"))
    made = create(sdk, file_id)
    sdk.files.delete(file_id)
    gone = ("account", "forget-stored", pair.owner.account_id, "--reason", "left")
    assert not pair.owner.server.cli(*gone, code=1)["complete"]
    batch = ended(sdk, made.id)
    assert int(only_charge(pair.owner)["chargedMillicredits"]) == due(rows_of(sdk, batch.output_file_id))
    wait_until(lambda: pair.owner.server.cli(*gone, code=None)["complete"], 10, "the rest is deleted")
    with pytest.raises(NotFoundError):
        sdk.files.content(batch.output_file_id)


def test_nothing_is_made_where_storing_is_off(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    customer = new_customer(served(**QUICK, TOLLKEEPER_BILLING__ALLOW_STORE="false"), "1000")
    with pytest.raises(PermissionDeniedError) as refused:
        create(client(customer), "file-1")
    assert refused.value.code == "storing_is_off"
