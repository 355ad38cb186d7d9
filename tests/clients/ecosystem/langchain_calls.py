"""langchain-openai's ordinary examples; base URL and key come from the environment. Prints one JSON object."""

import json

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def main() -> None:
    found: dict[str, object] = {}
    for name, options in (("chat", {}), ("responses", {"use_responses_api": True})):
        model = ChatOpenAI(model="gpt-4.1", max_retries=0, **options)
        found[f"{name} invoke"] = model.invoke("tell me of toll roads").text
        found[f"{name} stream"] = "".join(chunk.text for chunk in model.stream("tell me of bridges"))
        called = model.bind_tools([weather], tool_choice="any").invoke("how is the weather in Paris")
        found[f"{name} tools"] = [call["name"] for call in called.tool_calls]
        found[f"{name} structured"] = model.with_structured_output(Person).invoke("Ann is 40").model_dump()
    found["embeddings"] = len(
        OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False).embed_query(
            "a road with a toll"
        )
    )
    print(json.dumps(found))


main()
