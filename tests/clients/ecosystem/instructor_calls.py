"""instructor's structured answers; base URL and key come from the environment. Prints one JSON object."""

import json

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def main() -> None:
    found: dict[str, object] = {}
    messages = [{"role": "user", "content": "Ann is 40"}]
    modes = instructor.Mode
    for mode in (modes.TOOLS, modes.TOOLS_STRICT, modes.JSON_SCHEMA, modes.RESPONSES_TOOLS):
        client = instructor.from_openai(OpenAI(), mode=mode)
        made = client.chat.completions.create(model="gpt-4.1", response_model=Person, messages=messages, max_retries=1)
        found[mode.name] = made.model_dump()
    client = instructor.from_openai(OpenAI())
    partial = client.chat.completions.create_partial(model="gpt-4.1", response_model=Person, messages=messages)
    found["partial"] = list(partial)[-1].model_dump()
    by_name = instructor.from_provider("openai/gpt-5.4-mini")
    found["from_provider"] = by_name.chat.completions.create(response_model=Person, messages=messages).model_dump()
    print(json.dumps(found))


main()
