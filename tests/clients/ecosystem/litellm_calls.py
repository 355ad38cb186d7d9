"""LiteLLM's SDK on chat and Responses; base URL and key come from the environment. Prints one JSON object."""

import json
import os

import litellm

TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASKED = os.environ["WEATHER_LOOP"]


def chat(text: str, **more: object) -> object:
    return litellm.completion(model="openai/gpt-4.1", messages=[{"role": "user", "content": text}], **more)


def loop() -> bool:
    """Call the tool until the model speaks."""
    messages: list[object] = [{"role": "user", "content": ASKED}]
    for _ in range(4):
        answer = litellm.completion(
            model="openai/gpt-5.4-mini", messages=messages, tools=[{"type": "function", "function": TOOL}]
        )
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return len(messages) == 6 and bool(message.content)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    return False


def responses_loop() -> bool:
    """Call the tool until the model speaks, by previous_response_id."""
    common = {"model": "openai/gpt-5.4-mini", "tools": [{"type": "function", **TOOL}], "instructions": ASKED}
    answer = litellm.responses(input="how is the weather in Paris", **common)
    for step in range(4):
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return step == 2
        output = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
        answer = litellm.responses(input=output, previous_response_id=answer.id, **common)
    return False


def main() -> None:
    found: dict[str, object] = {"chat": chat("tell me of toll roads").choices[0].message.content}
    found["chat stream"] = "".join(
        part.choices[0].delta.content or "" for part in chat("tell me of bridges", stream=True) if part.choices
    )
    found["chat loop"] = loop()
    found["responses loop"] = responses_loop()
    stream = litellm.responses(model="openai/gpt-4.1", input="tell me of bridges", stream=True)
    found["responses stream"] = "completed" in str([event.type for event in stream][-1]).lower()
    found["embedding"] = len(
        litellm.embedding(model="openai/text-embedding-3-small", input=["a road"]).data[0]["embedding"]
    )
    print(json.dumps(found))


main()
