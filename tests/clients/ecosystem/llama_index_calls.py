"""llama-index on chat and Responses; base URL and key come from the environment. Prints one JSON object."""

import json
import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses

ASKED = os.environ["WEATHER_LOOP"]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def main() -> None:
    found: dict[str, object] = {}
    tool = FunctionTool.from_defaults(weather)
    bases = {OpenAI: "api_base", OpenAIResponses: "api_base"}
    for kind, base in bases.items():
        name = kind.__name__
        model = kind(model="gpt-4.1", max_retries=0, **{base: os.environ["OPENAI_BASE_URL"]})
        found[f"{name} complete"] = model.complete("tell me of toll roads").text
        found[f"{name} chat"] = model.chat([ChatMessage(role="user", content="tell me of ferries")]).message.content
        stream = model.stream_chat([ChatMessage(role="user", content="tell me of bridges")])
        found[f"{name} stream"] = "".join(part.delta or "" for part in stream)
        history = [ChatMessage(role="user", content=ASKED)]
        steps = 0
        while True:
            answer = model.chat_with_tools([tool], chat_history=history)
            history.append(answer.message)
            calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
            if not calls:
                break
            steps += len(calls)
            for call in calls:
                kwargs = {"tool_call_id": call.tool_id}
                history.append(ChatMessage(role="tool", content="sunny", additional_kwargs=kwargs))
        found[f"{name} loop"] = steps == 2
    chained = OpenAIResponses(
        model="gpt-5.4-mini", track_previous_responses=True, api_base=os.environ["OPENAI_BASE_URL"]
    )
    for number in range(2):
        found[f"tracked {number}"] = chained.chat([ChatMessage(role="user", content=f"hello {number}")]).message.content
    print(json.dumps(found))


main()
