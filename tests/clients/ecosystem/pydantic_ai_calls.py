"""pydantic-ai's ordinary examples; base URL and key come from the environment. Prints one JSON object."""

import asyncio
import json

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


async def main() -> None:
    found: dict[str, object] = {}
    for name, kind in (("chat", OpenAIChatModel), ("responses", OpenAIResponsesModel)):
        model = kind("gpt-4.1")
        agent = Agent(model, instructions="Be concise.")

        @agent.tool_plain
        def weather(city: str) -> str:
            """The weather in a city."""
            return f"sunny in {city}"

        found[f"{name} run"] = (await agent.run("tell me of toll roads")).output
        async with Agent(model).run_stream("tell me of bridges") as stream:
            found[f"{name} stream"] = await stream.get_output()
        found[f"{name} structured"] = (await Agent(model, output_type=Person).run("Ann is 40")).output.model_dump()
    print(json.dumps(found))


asyncio.run(main())
