"""Hosted tools in what a request builds on: held for as if they were sent now, the dearest of the image tools."""

import json
from typing import Any

import pytest

from config.settings import Settings
from proxy.gateway.bodies.parsed import StoredContext, carried_tools
from proxy.gateway.bodies.response_tools import find_image_tool
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import Plan, make_plan
from tests.support.plans import PRICES, TODAY, key

RESPONSES = METERED["POST", b"/v1/responses"]
CHEAP = {"type": "image_generation", "model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
DEAR = {"type": "image_generation", "model": "gpt-image-2", "quality": "high", "size": "1536x1024"}


def carried(*tools: dict[str, Any]) -> frozenset[str]:
    found = [carried_tools(frozenset(("image_generation",)), find_image_tool([one], 0), 100) for one in tools]
    return frozenset().union(*found)


def planned(stored: frozenset[str] = frozenset(), **fields: Any) -> Plan:
    body = json.dumps({"model": "gpt-5.4-mini", "input": "hi", "max_output_tokens": 50, **fields}).encode()
    context = StoredContext(1_000, stored)
    return make_plan(RESPONSES, RESPONSES.parse(body, b""), key(), PRICES, Settings(), context, today=TODAY)


def test_what_stands_in_stored_items_is_held_for_like_what_is_sent() -> None:
    assert planned(frozenset(("web_search",))).tools == planned(tools=[{"type": "web_search"}]).tools
    assert planned(carried(DEAR)).ceiling.amount >= planned(tools=[DEAR]).ceiling.amount


@pytest.mark.parametrize(("stored", "sent"), [((CHEAP,), DEAR), ((DEAR,), CHEAP), ((CHEAP, DEAR), None)])
def test_of_several_image_tools_the_dearest_is_held_for(stored: tuple[dict[str, Any], ...], sent: Any) -> None:
    tools = {} if sent is None else {"tools": [sent]}
    held = planned(carried(*stored), **tools).parsed.image_tool
    dearest = find_image_tool([DEAR], 0)
    assert held is not None
    assert dearest is not None
    assert (held.model, held.output_tokens) == (dearest.model, dearest.output_tokens)


def test_however_often_a_tool_is_carried_on_it_is_kept_once() -> None:
    many = frozenset().union(*(carried({**CHEAP, "size": f"{width}x1024"}) for width in (1024, 1536)))
    kept = planned(many | carried(DEAR)).parsed.carried
    assert len([one for one in kept if one.startswith("image_generation")]) == 1
