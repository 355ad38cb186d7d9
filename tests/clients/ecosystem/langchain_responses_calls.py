"""langchain-openai's loops on Responses, which keep the conversation at OpenAI; prints one JSON object."""

import json
import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

ASKED = os.environ["WEATHER_LOOP"]


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def loop(model: ChatOpenAI, *, streamed: bool = False) -> bool:
    """Call the tool until the model speaks: two steps."""
    bound, messages = model.bind_tools([weather]), [HumanMessage(ASKED)]
    for step in range(4):
        if streamed:
            parts = list(bound.stream(messages))
            answer = parts[0]
            for part in parts[1:]:
                answer += part
        else:
            answer = bound.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            return step == 2 and bool(answer.text)
        messages += [ToolMessage("sunny", tool_call_id=call["id"]) for call in answer.tool_calls]
    return False


def main() -> None:
    found: dict[str, object] = {}
    plain = {"model": "gpt-5.4-mini", "max_retries": 0, "use_responses_api": True}
    found["responses"] = loop(ChatOpenAI(**plain))
    found["responses stream"] = loop(ChatOpenAI(**plain), streamed=True)
    found["output_version v1"] = loop(ChatOpenAI(**plain, output_version="responses/v1"))
    found["unstored"] = loop(ChatOpenAI(**plain, store=False, include=["reasoning.encrypted_content"]))
    # the text that steers the simulator travels in the first request only
    chained = ChatOpenAI(**plain, use_previous_response_id=True)
    first = chained.invoke("tell me of toll roads")
    messages = [HumanMessage("tell me of toll roads"), first, HumanMessage("and of bridges")]
    found["previous_response_id"] = chained.invoke(messages).text
    print(json.dumps(found))


main()
