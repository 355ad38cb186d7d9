"""Compaction while a response is made, programs of its model, checks of its texts: charged by the upstream's bill."""

import json
from typing import Any

import pytest

from tests.support.served import Customer, usd_to_charge
from tests.support.servers import sandbox_says, wait_until

RESPONSES = "/v1/responses"
COMPACT = {"context_management": [{"type": "compaction", "compact_threshold": 20}]}
CHECKS = {"moderation": {"model": "omni-moderation-latest", "policy": {"output": {"mode": "score"}}}}


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "input": "some words " * 100, "max_output_tokens": 50, **fields}


def test_a_compaction_is_charged_as_it_is_reported(customer: Customer) -> None:
    plain = customer.post(asked(), RESPONSES).json()["usage"]
    answer = customer.post(asked(**COMPACT), RESPONSES)
    usage = answer.json()["usage"]
    assert [item["type"] for item in answer.json()["output"]][0] == "compaction"
    assert usage["input_tokens"] >= 2 * plain["input_tokens"]
    charge = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    row = customer.generation(answer.headers["x-request-id"])
    assert (int(row["chargedMillicredits"]), row["usageSource"]) == (charge, "upstream")
    assert int(row["heldMillicredits"]) >= charge


def test_a_client_that_leaves_while_a_context_is_compacted_pays_what_it_cost(customer: Customer) -> None:
    text = "some words " * 100 + sandbox_says(output_tokens=40, chunk_interval_ms=50)
    with customer.stream(asked(input=text, **COMPACT), RESPONSES) as wire:
        wire.read_events(2)
        request_id = wire.request_id
        wire.leave()
    row = customer.generation(request_id)
    bill = customer.finished(request_id)["usage"]
    assert int(row["chargedMillicredits"]) == usd_to_charge((bill["input_tokens"], "2"), (bill["output_tokens"], "8"))


def test_programs_cost_their_tokens(customer: Customer) -> None:
    tools = [{"type": "programmatic_tool_calling"}]
    answer = customer.post(asked(tools=tools, tool_choice={"type": "programmatic_tool_calling"}), RESPONSES)
    assert answer.status_code == 200, answer.text
    assert [item["type"] for item in answer.json()["output"]][:2] == ["program", "program_output"]
    usage = answer.json()["usage"]
    charge = usd_to_charge((usage["input_tokens"], "2"), (usage["output_tokens"], "8"))
    assert customer.charged(answer.headers["x-request-id"]) == charge


@pytest.mark.parametrize("path", [RESPONSES, "/v1/chat/completions"])
def test_texts_are_checked_for_nothing(customer: Customer, path: str) -> None:
    body = asked() if path == RESPONSES else customer.body(max_tokens=9)
    charges = []
    for more in ({}, CHECKS):
        answer = customer.post({**body, **more}, path)
        assert answer.status_code == 200, answer.text
        charges.append(customer.generation(answer.headers["x-request-id"]))
    sent = customer.served(charges[1]["requestId"])["requestBody"]
    assert json.loads(json.dumps(sent))["moderation"] == CHECKS["moderation"]
    assert charges[0]["inputTokens"] == charges[1]["inputTokens"]
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
