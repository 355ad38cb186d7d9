"""`tool_calls`: the model calls the client's own tools by name, one an answer, and speaks after the last."""

import pytest

from tests.sandbox.openai.sandbox_shapes import steer

pytestmark = pytest.mark.asyncio
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
CHAT_CUSTOM = {"type": "custom", "custom": {"name": "shout"}}
FUNCTION = {"type": "function", "name": "weather", "parameters": WEATHER}
CUSTOM = {"type": "custom", "name": "shout"}
TWICE = {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "shout", "arguments": "hoy"}]}
MODEL = "gpt-5.4-mini"


async def respond(box, items, **fields):
    answer = await box.http.post("/v1/responses", json={"model": MODEL, "input": items, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_chat_calls_one_tool_an_answer_and_then_speaks(box):
    messages = [{"role": "user", "content": steer("weather?", TWICE)}]
    said = []
    for _ in range(3):
        body = {"model": MODEL, "messages": messages, "tools": [CHAT_TOOL, CHAT_CUSTOM], "stream": False}
        answer = (await box.http.post("/v1/chat/completions", json=body)).json()
        choice = answer["choices"][0]
        said.append(choice["finish_reason"])
        messages.append(choice["message"])
        for call in choice["message"].get("tool_calls") or ():
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "sunny"})
    assert said == ["tool_calls", "tool_calls", "stop"]
    first, second = messages[1]["tool_calls"][0], messages[3]["tool_calls"][0]
    assert first["function"] == {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert second["custom"] == {"name": "shout", "input": "hoy"}
    assert first["id"] != second["id"]
    assert (await box.last())["usage"] == answer["usage"]


async def test_a_new_message_of_the_user_begins_the_calls_again(box):
    once = {"tool_calls": TWICE["tool_calls"][:1]}
    output = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    asked = {"role": "user", "content": steer("weather?", once)}
    body = {"model": MODEL, "messages": [asked, output, asked], "tools": [CHAT_TOOL]}
    answer = (await box.http.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("follow", ["replayed", "previous_response_id"])
async def test_a_response_calls_one_tool_an_answer_and_then_speaks(box, follow):
    fields = {"tools": [FUNCTION, CUSTOM], "instructions": steer("Be brief.", TWICE)}
    items, kinds = [{"role": "user", "content": "weather?"}], []
    for _ in range(3):
        answer = await respond(box, items, **fields)
        (call,) = [item for item in answer["output"] if item["type"] != "reasoning"]
        kinds.append((call["type"], call.get("name"), call.get("arguments", call.get("input"))))
        kind = call["type"].removesuffix("_call") + "_call_output"
        output = {"type": kind, "call_id": call.get("call_id"), "output": "sunny"}
        if follow == "replayed":
            items = [*items, *answer["output"], output]
        else:
            items, fields = [output], fields | {"previous_response_id": answer["id"]}
    assert kinds == [
        ("function_call", "weather", '{"city":"Paris"}'),
        ("custom_tool_call", "shout", "hoy"),
        ("message", None, None),
    ]
    assert (await box.last())["usage"] == answer["usage"]


async def test_streamed_calls_are_the_sdks_events(box):
    custom = {"tool_calls": [{"name": "shout", "arguments": "hoy there"}]}
    async with box.sdk.responses.stream(model=MODEL, input=steer("x", custom), tools=[CUSTOM]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert "response.custom_tool_call_input.done" in kinds
    assert (final.output[-1].type, final.output[-1].input) == ("custom_tool_call", "hoy there")


@pytest.mark.parametrize("where", ["tools", "additional_tools", "stored"])
async def test_a_function_in_a_namespace_is_called_with_it(box, where):
    space = {"type": "namespace", "name": "maps", "tools": [FUNCTION]}
    asked = {"role": "user", "content": steer("weather?", {"tool_calls": TWICE["tool_calls"][:1]})}
    brought = {"type": "additional_tools", "role": "developer", "tools": [space]}
    if where == "tools":
        answer = await respond(box, [asked], tools=[space])
    elif where == "additional_tools":
        answer = await respond(box, [brought, asked])
    else:
        first = await respond(box, [brought, {"role": "user", "content": "hello"}])
        answer = await respond(box, [asked], previous_response_id=first["id"])
    assert (answer["output"][-1]["name"], answer["output"][-1]["namespace"]) == ("weather", "maps")


async def test_a_tool_without_a_name_is_called_as_the_item_given(box):
    action = {"commands": ["ls"]}
    script = {"tool_calls": [{"type": "shell_call", "action": action}], "reasoning_tokens": 0}
    items = [{"role": "user", "content": steer("x", script)}]
    answer = await respond(box, items, tools=[{"type": "shell"}])
    (call,) = answer["output"]
    assert (call["type"], call["action"], call["status"]) == ("shell_call", action, "completed")
    assert answer["usage"]["output_tokens"] > 5
    assert (await box.last())["usage"] == answer["usage"]
    items += [call, {"type": "shell_call_output", "call_id": call["call_id"], "output": []}]
    assert (await respond(box, items, tools=[{"type": "shell"}]))["output"][-1]["type"] == "message"


async def test_a_tool_the_request_does_not_hold_is_not_called(box):
    items = [{"role": "user", "content": steer("x", {"tool_calls": [{"name": "elsewhere"}, {"type": "shell_call"}]})}]
    assert (await respond(box, items, tools=[FUNCTION]))["output"][-1]["type"] == "message"
    body = {"model": MODEL, "messages": items, "tools": [CHAT_TOOL]}
    answer = (await box.http.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_an_entry_without_a_name_or_type_is_the_testers_slip(box):
    answer = await box.http.post("/v1/responses", json={"model": MODEL, "input": steer("x", {"tool_calls": [{}]})})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_directive")
