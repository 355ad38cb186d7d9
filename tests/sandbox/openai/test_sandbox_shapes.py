"""Every wire sample of the metered endpoints comes out with the same keys in the same order."""

import json
from typing import Any

import pytest

from tests.sandbox.openai.sandbox_shapes import SAMPLES, sample, shapes, skeleton

MODEL = "gpt-5.4-mini-2026-03-17"
pytestmark = pytest.mark.asyncio


def sample_events(name: str) -> list[str]:
    lines = (SAMPLES / name).read_text().splitlines()
    return [line[6:] for line in lines if line.startswith("data: ")]


def parsed(events: list[str]) -> list[Any]:
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def plain(value: dict[str, Any]) -> str:
    """The exact JSON text with the values blanked that differ from answer to answer."""
    blanked = {key: "*" if key in {"id", "created", "obfuscation"} else item for key, item in value.items()}
    return json.dumps(blanked, separators=(",", ":"))


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {"tz": {"type": "string"}}},
        },
    }
]


async def test_stream_with_usage_is_the_sample_to_the_byte(box):
    expected = sample_events("chat_stream_include_usage.sse")
    usage = json.loads(expected[-2])["usage"]
    directive = {"text": "Blue whale.", "model": MODEL, "usage": usage}
    found = await box.events(directive, service_tier="default")
    assert found[-1] == expected[-1] == "[DONE]"
    assert [plain(json.loads(e)) for e in found[:-1]] == [plain(json.loads(e)) for e in expected[:-1]]
    assert json.loads(found[-2])["obfuscation"] == ""


@pytest.mark.parametrize(
    ("name", "directive", "fields"),
    [
        ("chat_stream_no_usage_option.sse", {"text": "Blue whale."}, {"stream_options": None}),
        ("chat_stream_tool_calls.sse", {}, {"tools": TOOLS, "tool_choice": "required"}),
        ("chat_stream_refusal_logprobs.sse", {"refusal": "No."}, {"logprobs": True}),
        ("chat_stream_midstream_error.sse", {"text": "Blue", "error_after_chunks": 2}, {}),
    ],
)
async def test_stream_has_the_shapes_of_the_sample(box, name, directive, fields):
    found = await box.events(directive, service_tier="default", **fields)
    assert shapes(parsed(found)) == shapes(parsed(sample_events(name)))


async def test_two_choices_interleave_by_index(box):
    found = parsed(await box.events({"text": "Red"}, n=2, service_tier="default"))
    expected = parsed(sample_events("chat_stream_n2.sse"))
    assert shapes(found) == shapes(expected)
    order = [event["choices"][0]["index"] for event in found[:-2]]
    assert order == [event["choices"][0]["index"] for event in expected[:-2]] == [0, 1] * 3


async def test_legacy_stream_is_the_sample_to_the_byte(box):
    expected = sample_events("completions_legacy_stream_include_usage.sse")
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    found = await box.events({"text": "Hi!", "usage": usage}, "/v1/completions", model="gpt-3.5-turbo-instruct")
    assert [plain(json.loads(e)) for e in found[:-1]] == [plain(json.loads(e)) for e in expected[:-1]]
    assert found[-1] == "[DONE]"


async def test_json_answer_is_the_sample(box):
    expected = sample("chat_nonstream.json")
    directive = {"text": "Blue whale.", "model": MODEL, "usage": expected["usage"]}
    found = (await box.chat(directive, service_tier="default")).json()
    assert plain(found) == plain(expected)


async def test_image_usage_has_the_keys_of_the_sample(box, png):
    directive = '[[sandbox {"text": "Blue whale."}]]'
    parts = [
        {"type": "text", "text": directive},
        {"type": "image_url", "image_url": {"url": png(1024, 1024)}},
    ]
    messages = [{"role": "user", "content": parts}]
    found = (await box.chat(messages=messages, service_tier="default")).json()
    assert skeleton(found) == skeleton(sample("chat_nonstream.json"))
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 1229


async def test_audio_answer_has_the_shape_of_the_sample(box):
    parts = [
        {"type": "text", "text": "Say hello."},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ]
    messages = [{"role": "user", "content": parts}]
    fields = {"model": "gpt-audio-1.5", "modalities": ["text", "audio"], "service_tier": "default"}
    found = (await box.chat(messages=messages, **fields)).json()
    assert skeleton(found) == skeleton(sample("chat_nonstream_audio.json"))
    details = found["usage"]["completion_tokens_details"]
    assert details["audio_tokens"] > 0
    assert details["audio_tokens"] + details["text_tokens"] == found["usage"]["completion_tokens"]


async def test_audio_stream_carries_audio_deltas_and_bills_them(box):
    found = parsed(await box.events(model="gpt-audio-1.5", modalities=["text", "audio"]))
    deltas = [event["choices"][0]["delta"] for event in found[:-2]]
    assert deltas[0]["audio"]["id"]
    assert deltas[-2]["audio"]["expires_at"] > 0
    assert found[-2]["usage"]["completion_tokens_details"]["audio_tokens"] == 3 * 40


async def test_web_search_answer_is_the_sample(box):
    expected = sample("chat_nonstream_web_search.json")
    directive = {"model": expected["model"], "usage": expected["usage"]}
    found = await box.chat(directive, model="gpt-5-search-api", service_tier="default")
    assert plain(found.json()) == plain(expected)


async def test_embedding_answer_has_the_shape_of_the_sample(box):
    body = {"model": "text-embedding-3-small", "input": "Hello", "dimensions": 2}
    found = (await box.http.post("/v1/embeddings", json=body)).json()
    assert skeleton(found) == skeleton(sample("embeddings.json"))


@pytest.mark.parametrize("name", sorted(json.loads((SAMPLES / "errors.json").read_text())))
async def test_every_error_sample_can_be_had(box, name):
    answer = await box.chat({"status": int(name[:3]), "error": name})
    assert answer.status_code == int(name[:3])
    assert answer.json() == sample("errors.json")[name]


async def test_obfuscation_can_be_switched_off(box):
    options = {"include_usage": True, "include_obfuscation": False}
    assert not [e for e in await box.events(stream_options=options) if "obfuscation" in e]


@pytest.mark.parametrize(("asked", "echoed"), [("fast", "priority"), ("auto", "default"), ("flex", "flex")])
async def test_tier_is_echoed_only_when_asked_for(box, asked, echoed):
    assert (await box.chat(service_tier=asked)).json()["service_tier"] == echoed
    assert "service_tier" not in (await box.chat()).json()


async def test_headers_hold_the_canaries_a_proxy_must_hide(box):
    answer = await box.chat()
    assert answer.headers["openai-organization"] == "org-sandboxcanary"
    assert answer.headers["openai-project"] == "proj_sandboxcanary"
    assert answer.headers["set-cookie"].startswith("__cf_bm=canary")
    assert answer.headers["x-request-id"].startswith("req_")
    for name in ("openai-processing-ms", "openai-version", "cf-ray", "alt-svc"):
        assert answer.headers[name]
    assert answer.headers["x-ratelimit-remaining-tokens"]


async def test_each_event_is_one_http_chunk(box):
    raw = await box.raw(box.stream_body({"text": "Blue whale."}), extra="connection: close\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b""
    assert all(c.startswith(b"data: ") and c.endswith(b"\n\n") and c.count(b"\n") == 2 for c in chunks)
    assert len(chunks) == 7


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir() if path.suffix in {".sse", ".json"}))
async def test_every_sample_can_be_replayed_verbatim(box, name):
    answer = await box.chat({"replay": name})
    assert answer.content == (SAMPLES / name).read_bytes()
    kind = "text/event-stream" if name.endswith(".sse") else "application/json"
    assert answer.headers["content-type"].startswith(kind)
