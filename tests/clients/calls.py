"""What an app does with the official Python SDK, versions 2 and 3 alike. Run as a script; prints what the app saw.

Nothing is set on the client but `base_url` and `api_key`, read from KEYS (a JSON object) in the environment.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI

KEYS: dict[str, str] = json.loads(os.environ["KEYS"])
URL = os.environ["BASE_URL"]
MODEL = "gpt-4o-mini"


def client(key: str = "rich") -> OpenAI:
    return OpenAI(base_url=URL, api_key=KEYS[key])


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def failure(error: openai.APIStatusError) -> dict[str, Any]:
    return {
        "class": type(error).__name__,
        "status": error.status_code,
        "code": error.code,
        "type": error.type,
        "body": error.body,
        "requestId": error.request_id,
    }


def failing(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return failure(error)
    return {"class": "none"}


def chat(text: str) -> Any:
    raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=messages(text), max_tokens=30)
    answer = raw.parse()
    return {
        "content": answer.choices[0].message.content,
        "usage": answer.usage.to_dict(),
        "headers": {name: value for name, value in raw.headers.items() if name.startswith("x-")},
        "retries": raw.retries_taken,
        "requestId": answer._request_id,
    }


def stream(text: str) -> Any:
    answer = client().chat.completions.create(model=MODEL, messages=messages(text), max_tokens=30, stream=True)
    chunks = list(answer)
    return {
        "content": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "usages": [chunk.usage for chunk in chunks if chunk.usage is not None],
        "emptyChoices": sum(not chunk.choices for chunk in chunks),
        "held": answer.response.headers["x-credits-held"],
        "requestId": answer.response.headers["x-request-id"],
    }


def stream_with_usage(text: str) -> Any:
    chunks = list(
        client().chat.completions.create(
            model=MODEL, messages=messages(text), max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    return {
        "content": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usages": [chunk.usage.to_dict() for chunk in chunks if chunk.usage is not None],
        "lastHasUsage": chunks[-1].usage is not None and not chunks[-1].choices,
    }


def tools(text: str) -> Any:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    answer = client().chat.completions.create(
        model=MODEL, messages=messages(text), tools=[tool], tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    second = client().chat.completions.create(
        model=MODEL,
        messages=[
            *messages(text),
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
        tools=[tool],
        tool_choice="none",
    )
    return {
        "finish": answer.choices[0].finish_reason,
        "name": call.function.name,
        "arguments": sorted(json.loads(call.function.arguments)),
        "then": second.choices[0].message.content,
    }


def two_choices(text: str) -> Any:
    answer = client().chat.completions.create(model=MODEL, messages=messages(text), n=2, max_tokens=10)
    return {"indexes": [choice.index for choice in answer.choices], "usage": answer.usage.to_dict()}


def embeddings(text: str) -> Any:
    answer = client().embeddings.create(model="text-embedding-3-small", input=[text, "second"])
    return {
        "lengths": [len(item.embedding) for item in answer.data],
        "types": sorted({type(value).__name__ for item in answer.data for value in item.embedding}),
        "usage": answer.usage.to_dict(),
    }


def legacy(text: str) -> Any:
    answer = client().completions.create(model="gpt-3.5-turbo-instruct", prompt=text, max_tokens=7)
    streamed = list(client().completions.create(model="gpt-3.5-turbo-instruct", prompt=text, max_tokens=7, stream=True))
    return {
        "text": answer.choices[0].text,
        "usage": answer.usage.to_dict(),
        "streamed": "".join(chunk.choices[0].text for chunk in streamed if chunk.choices),
    }


def models(_text: str) -> Any:
    return {"listed": [model.id for model in client().models.list()], "one": client().models.retrieve(MODEL).id}


def insufficient(text: str) -> Any:
    return failing(
        lambda: client("poor").chat.completions.create(model=MODEL, messages=messages(text), max_tokens=10_000)
    )


def unknown_key(text: str) -> Any:
    return failing(lambda: client("unknown").chat.completions.create(model=MODEL, messages=messages(text)))


def unknown_model(text: str) -> Any:
    return {
        "chat": failing(lambda: client().chat.completions.create(model="gpt-imaginary", messages=messages(text))),
        "retrieve": failing(lambda: client().models.retrieve("gpt-imaginary")),
        "endpoint": failing(client().fine_tuning.jobs.list),
    }


def bad_request(text: str) -> Any:
    return failing(lambda: client().chat.completions.create(model=MODEL, messages=messages(text), n=0))


def own_limit(text: str) -> Any:
    """The key's tokens per minute are used up by the first call; the second is let in after a moment, by the SDK's own retry."""
    limited = client("limited")
    first = limited.chat.completions.create(model=MODEL, messages=messages(text), max_tokens=3_000)
    second = limited.chat.completions.with_raw_response.create(model=MODEL, messages=messages(text), max_tokens=3_000)
    return {
        "first": first.usage.completion_tokens,
        "retries": second.retries_taken,
        "second": second.parse().usage.completion_tokens,
    }


def upstream_limit(text: str) -> Any:
    return failing(lambda: client().chat.completions.create(model=MODEL, messages=messages(text)))


def leave_stream(text: str) -> Any:
    answer = client().chat.completions.create(model=MODEL, messages=messages(text), stream=True)
    seen = []
    for chunk in answer:
        seen.append(chunk.choices[0].delta.content or "")
        if len(seen) == 4:
            break
    answer.close()
    return {"content": "".join(seen), "requestId": answer.response.headers["x-request-id"]}


def two_threads(text: str) -> Any:
    """One client, used by many threads at once, as web apps do."""
    shared, found = client(), []

    def ask(number: int) -> None:
        answer = shared.chat.completions.create(model=MODEL, messages=messages(f"{text} {number}"), max_tokens=5)
        found.append(answer.usage.completion_tokens)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return {"completionTokens": found}


def stores(text: str) -> Any:
    """A file in parts, into a vector store, found in it by a model and by a search, and all of it taken away."""
    sdk, data = client(), b"The refund policy: whales are refunded within 30 days."
    upload = sdk.uploads.create(bytes=len(data), filename="a.txt", mime_type="text/plain", purpose="assistants")
    parts = [sdk.uploads.parts.create(upload.id, data=piece).id for piece in (data[:20], data[20:])]
    file = sdk.uploads.complete(upload.id, part_ids=parts).file
    store = sdk.vector_stores.create(name="docs", expires_after={"anchor": "last_active_at", "days": 1})
    batch = sdk.vector_stores.file_batches.create_and_poll(store.id, file_ids=[file.id], poll_interval_ms=20)
    answer = sdk.responses.create(
        model=MODEL,
        input=text,
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
        include=["file_search_call.results"],
        max_tool_calls=1,
        max_output_tokens=30,
    )
    results = [item.results for item in answer.output if item.type == "file_search_call"]
    found = sdk.vector_stores.search(store.id, query="refund policy").data
    return {
        "file": file.id,
        "completed": batch.file_counts.completed,
        "results": [row.file_id for rows in results for row in rows],
        "found": [row.file_id for row in found],
        "bytes": sdk.vector_stores.retrieve(store.id).usage_bytes,
        "deleted": [sdk.vector_stores.delete(store.id).deleted, sdk.files.delete(file.id).deleted],
    }


SCENARIOS: dict[str, Callable[[str], Any]] = {
    name: value for name, value in globals().items() if callable(value) and name in json.loads(os.environ["TEXTS"])
}


def main() -> None:
    texts, found = json.loads(os.environ["TEXTS"]), {}
    for name, scenario in SCENARIOS.items():
        began = time.monotonic()
        try:
            found[name] = scenario(texts[name])
        except Exception as error:
            found[name] = {"raised": f"{type(error).__name__}: {error}"}
        print(name, round(time.monotonic() - began, 2), file=sys.stderr)
    json.dump({"version": openai.__version__, "found": found}, sys.stdout)


main()
