"""openai-agents: a loop over a tool on every way it keeps a conversation; base URL and key come from the environment. Prints one JSON object."""

import asyncio
import json
import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)
ASKED = os.environ["WEATHER_LOOP"]


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main() -> None:
    found: dict[str, object] = {}
    client = AsyncOpenAI(max_retries=0)
    default = Agent(name="default", model="gpt-5.4-mini", instructions="Be concise.", tools=[weather])
    ran = await Runner.run(default, ASKED)
    found["default loop"] = [type(item).__name__ for item in ran.new_items].count("ToolCallOutputItem") == 2
    found["default output"] = ran.final_output
    chained = await Runner.run(default, "and Rome?", previous_response_id=ran.last_response_id)
    found["previous_response_id"] = chained.final_output
    auto = await Runner.run(default, ASKED, auto_previous_response_id=True)
    found["auto_previous_response_id"] = auto.final_output
    session = SQLiteSession("one")
    for name, text in (("first", ASKED), ("second", "and Rome?")):
        found[f"session {name}"] = (await Runner.run(default, text, session=session)).final_output
    streamed = Runner.run_streamed(default, ASKED)
    found["streamed events"] = len([event async for event in streamed.stream_events()])
    found["streamed output"] = streamed.final_output
    unstored = default.clone(
        model_settings=ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    )
    found["unstored"] = (await Runner.run(unstored, ASKED)).final_output
    for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        agent = default.clone(model=kind("gpt-4.1", client))
        found[f"{name} model"] = (await Runner.run(agent, ASKED)).final_output
    print(json.dumps(found))


asyncio.run(main())
