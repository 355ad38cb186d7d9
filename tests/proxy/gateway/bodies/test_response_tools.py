"""A tool definition is judged where it stands: at the top, in an item, inside another tool, at any depth."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from config.settings import Billing, Settings
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.bodies.responses import parse_compact, parse_input_tokens, parse_response
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import Plan, make_plan
from proxy.web.rejections import Rejection
from tests.support.plans import PRICES, TODAY, key

SEARCH = {"type": "web_search"}
PICTURES = {"type": "image_generation", "model": "gpt-image-2", "quality": "high"}
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}

Place = Callable[[dict[str, Any]], dict[str, Any]]


def item(kind: str, tools: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"input": [{"type": kind, "tools": tools, **more}, {"role": "user", "content": "hi"}]}


def namespace(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": "x", "description": "y", "tools": list(tools)}


PLACES: dict[str, Place] = {
    "top": lambda tool: {"tools": [tool]},
    "additional_tools": lambda tool: item("additional_tools", [tool], role="developer"),
    "tool_search_output": lambda tool: item("tool_search_output", [FUNCTION, tool]),
    "namespace": lambda tool: {"tools": [namespace(FUNCTION, tool)]},
    "namespace in an item": lambda tool: item("additional_tools", [namespace(tool)]),
    "namespace in a namespace": lambda tool: {"tools": [namespace(namespace(tool))]},
    "an item nobody knows": lambda tool: item("tools_of_tomorrow", [tool]),
    "deep in an item": lambda tool: {"input": [{"type": "x", "output": [{"deep": {"tools": [tool]}}]}]},
}


def parsed(fields: dict[str, Any], parse: Callable[[bytes], Parsed] = parse_response) -> Parsed:
    return parse(json.dumps({"model": "gpt-4.1", "input": "hi", **fields}).encode())


def planned(fields: dict[str, Any], allowed: tuple[str, ...] = ("web_search", "image_generation"), **more: Any) -> Plan:
    settings = Settings(billing=Billing(allowed_tools=allowed))
    endpoint = METERED["POST", b"/v1/responses"]
    return make_plan(
        endpoint, parsed({"max_output_tokens": 50, **fields, **more}), key(), PRICES, settings, today=TODAY
    )


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_hosted_tool_is_held_for_wherever_it_stands(place: Place) -> None:
    """Ten searches at 10 credits, and what they bring, each turn read again: about as at the top, never as without."""
    top, found, none = planned(PLACES["top"](SEARCH)), planned(place(SEARCH)), planned({})
    assert found.tools == top.tools
    assert found.ceiling.amount >= top.ceiling.amount * 0.9 > none.ceiling.amount * 100


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    ("tool", "code"),
    [
        (CODE, "tool_not_allowed"),
        ({"type": "mcp", "server_label": "x", "server_url": "https://other.example/sse"}, "tool_not_allowed"),
        ({"type": "tools_of_tomorrow"}, "unsupported_tool"),
        ({"type": "programmatic_tool_calling"}, "tool_not_allowed"),
        ({"type": "shell", "environment": {"type": "container_auto"}}, "unsupported_tool"),
        ({"type": "shell"}, "unsupported_tool"),
        ({"type": "tool_search"}, "unsupported_tool"),
        ({"type": "tool_search", "execution": "server"}, "unsupported_tool"),
        ({**PICTURES, "quality": "dazzling"}, "invalid_value"),
        ({"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}}, "unsupported_parameter"),
    ],
    ids=str,
)
def test_what_is_refused_at_the_top_is_refused_everywhere(place: Place, tool: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejection) as caught:
        planned(place(tool))
    assert caught.value.code == code


ITEMS = ("additional_tools", "tool_search_output", "namespace in an item", "an item nobody knows", "deep in an item")


@pytest.mark.parametrize("parse", [parse_response, parse_compact, parse_input_tokens], ids=lambda p: str(p.__name__))
@pytest.mark.parametrize("place", ITEMS)
def test_every_endpoint_of_responses_sees_the_tools_in_its_input(parse: Callable[[bytes], Parsed], place: str) -> None:
    assert "web_search" in parsed(PLACES[place](SEARCH), parse).tools


def test_a_second_image_tool_is_refused_wherever_the_first_stands() -> None:
    with pytest.raises(Rejection, match="once"):
        planned({"tools": [PICTURES], **item("additional_tools", [PICTURES])})


@pytest.mark.parametrize(
    "tool",
    [
        namespace(FUNCTION, {"type": "custom", "name": "c"}),
        {"type": "tool_search", "execution": "client"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "local_shell"},
        {"type": "apply_patch"},
    ],
    ids=lambda tool: str(tool["type"]),
)
def test_tools_that_run_at_the_client_cost_tokens_only(tool: dict[str, Any]) -> None:
    assert planned(PLACES["additional_tools"](tool)).tools.calls == 0
    assert planned(PLACES["top"](tool), allowed=()).tools.calls == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{**FUNCTION, "parameters": {"properties": {"tools": {"type": "array"}, "x": {"tools": [1]}}}}]},
        item("mcp_list_tools", [{"name": "a", "input_schema": {"properties": {"file_id": {}}}}], server_label="x"),
        {
            "input": [
                {"type": "function_call", "arguments": json.dumps({"tools": [SEARCH]}), "call_id": "c", "name": "f"}
            ]
        },
    ],
    ids=["a schema", "a server's list", "arguments"],
)
def test_data_of_the_clients_own_is_no_tool(fields: dict[str, Any]) -> None:
    assert planned(fields, allowed=()).tools.calls == 0


@pytest.mark.parametrize("tools", [{"type": "web_search"}, ["web_search"], [{}], [None], "web_search", 5])
@pytest.mark.parametrize("place", ["top", "item"])
def test_tools_that_are_no_list_of_tools_are_refused(tools: Any, place: str) -> None:
    with pytest.raises(Rejection, match="list of objects"):
        parsed({"tools": tools} if place == "top" else item("additional_tools", tools))


CALL = {"call_id": "c", "status": "completed"}


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ({"type": "item_reference", "id": "x"}, True),
        ({"type": "item_reference", "id": "x", "content": "y"}, True),
        ({"id": "x"}, True),
        ({"type": "image_generation_call", "id": "x"}, True),
        ({"type": "reasoning", "id": "x", "summary": [{"type": "summary_text", "text": "a"}]}, True),
        ({"type": "reasoning", "id": "x", "summary": [], "encrypted_content": "gAAA"}, False),
        ({"type": "apply_patch_call", "id": "x", "operation": {"type": "delete_file", "path": "a"}, **CALL}, False),
        ({"type": "function_call", "id": "x", "name": "f", "arguments": "", **CALL}, False),
        ({"type": "message", "id": "x", "role": "assistant", "content": []}, False),
        ({"type": "image_generation_call", "id": "x", "result": None}, True),
        ({"type": "image_generation_call", "id": "x", "result": "aGk="}, False),
        ({"type": "compaction", "id": "x", "encrypted_content": ""}, True),
        ({"type": "mcp_approval_response", "id": "x", "approval_request_id": "y", "approve": True}, False),
    ],
)
def test_what_an_item_is_follows_from_its_type(given: dict[str, Any], reference: bool) -> None:
    for parse in (parse_response, parse_compact, parse_input_tokens):
        assert bool(parsed({"input": [given]}, parse).references) is reference


@pytest.mark.parametrize(
    "given",
    [
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "x", "annotations": [{"file_id": "cfile_1"}]}],
        },
        {"type": "mcp_list_tools", "server_label": "x", "tools": [{"input_schema": {"properties": {"file_id": {}}}}]},
    ],
    ids=["a citation", "a schema"],
)
def test_an_id_in_data_asks_for_nothing(given: dict[str, Any]) -> None:
    assert parsed({"input": [given]}).references == ()
