"""Whatever a request of any kind asks for, what the simulator bills for it is never more than what was held."""

import base64
import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.support import web
from tests.support.media import png, wav
from tests.support.served import Customer
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

REQUESTS = 40
ALL_TOOLS = '["web_search","web_search_preview","file_search","code_interpreter","image_generation"]'
TEXT_MODELS = (
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-5.1",
    "gpt-5.4-mini",
    "gpt-5.5",
    "gpt-6.2-sol",
    "o3",
)
ALPHABETS = (
    "the toll road is long ",
    "道路通行料金は",
    "🚗🛣️",
    '\\"\n\t\u0000',
    "<|endoftext|>",
    "aaaaaaaa",
    "    ",
    "Ωмега ",
)
SIDES = (1, 31, 33, 512, 513, 769, 1024, 2049, 3000)


class Sent(NamedTuple):
    path: str
    body: dict[str, Any]
    files: dict[str, Any] | None = None


class Asker:
    """Random requests of one kind."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def text(self, most: int = 300) -> str:
        return self.chance.choice(ALPHABETS) * self.chance.randrange(1, most // 8) + "x" * self.chance.randrange(3)

    def picture(self) -> str:
        data = png(self.chance.choice(SIDES), self.chance.choice(SIDES))
        return "data:image/png;base64," + base64.b64encode(data).decode()

    def maybe(self, **fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if self.chance.random() < 0.4}

    def function(self) -> dict[str, Any]:
        properties = {
            f"p{number}": {"type": "string", "description": self.text(60)} for number in range(self.chance.randrange(4))
        }
        return {
            "name": "look_up",
            "description": self.text(80),
            "parameters": {"type": "object", "properties": properties},
        }

    def chat(self) -> Sent:
        content: Any = self.text()
        if self.chance.random() < 0.5:
            image = {"url": self.picture(), **self.maybe(detail=self.chance.choice(("low", "high", "auto")))}
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": image}]
        messages = [{"role": "system", "content": self.text()}, {"role": "user", "content": content}]
        options = self.maybe(n=self.chance.randrange(1, 4), tools=[{"type": "function", "function": self.function()}])
        cap = {"max_completion_tokens": self.chance.randrange(16, 400)}
        return Sent(
            "/v1/chat/completions", {"model": self.chance.choice(TEXT_MODELS), "messages": messages, **cap, **options}
        )

    def response(self) -> Sent:
        parts: list[dict[str, Any]] = [{"type": "input_text", "text": self.text()}]
        if self.chance.random() < 0.5:
            parts.append(
                {
                    "type": "input_image",
                    "image_url": self.picture(),
                    **self.maybe(detail=self.chance.choice(("low", "high"))),
                }
            )
        items: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if self.chance.random() < 0.3:
            items.append({"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"})
            items.append({"type": "function_call_output", "call_id": "c1", "output": self.text()})
        options = self.maybe(instructions=self.text(), max_output_tokens=self.chance.randrange(16, 400))
        return Sent("/v1/responses", {"model": self.chance.choice(TEXT_MODELS), "input": items, **options})

    def hosted(self) -> Sent:
        kinds = {
            "web_search": {"type": "web_search"},
            "code_interpreter": {"type": "code_interpreter", "container": {"type": "auto"}},
            "image_generation": {
                "type": "image_generation",
                "model": "gpt-image-2",
                **self.maybe(quality="low", size="1024x1536"),
            },
        }
        kind = self.chance.choice(sorted(kinds))
        said = sandbox_says(
            calls=[kind] * self.chance.randrange(1, 4), retrieved_tokens=self.chance.randrange(1, 8_000)
        )
        body = {
            "model": self.chance.choice(("gpt-4.1", "gpt-5.1", "gpt-6.2-sol")),
            "input": said,
            "tools": [kinds[kind]],
        }
        return Sent("/v1/responses", {**body, "max_output_tokens": self.chance.randrange(100, 400)})

    def picture_made(self) -> Sent:
        sizes, qualities = (
            ("1024x1024", "1536x1024", "1024x1536", "2048x1024", "auto"),
            ("low", "medium", "high", "xhigh", "auto"),
        )
        options = self.maybe(
            size=self.chance.choice(sizes), quality=self.chance.choice(qualities), n=self.chance.randrange(1, 3)
        )
        if self.chance.random() < 0.5:
            return Sent("/v1/images/generations", {"model": "gpt-image-2", "prompt": self.text(), **options})
        files = {"image": ("a.png", png(self.chance.choice(SIDES), self.chance.choice(SIDES)), "image/png")}
        form = {
            "model": "gpt-image-2",
            "prompt": "x" + self.text(),
            **{name: str(value) for name, value in options.items()},
        }
        return Sent("/v1/images/edits", form, files)

    def sound(self) -> Sent:
        if self.chance.random() < 0.5:
            speed = self.maybe(speed=self.chance.choice((0.25, 1, 4)), instructions=self.text())
            body = {
                "model": self.chance.choice(("gpt-4o-mini-tts", "tts-1")),
                "voice": "alloy",
                "input": self.text(),
                **speed,
            }
            if body["model"] == "tts-1":
                body.pop("instructions", None)
            return Sent("/v1/audio/speech", body)
        files = {"file": ("a.wav", wav(self.chance.randrange(1, 40)), "audio/wav")}
        model = self.chance.choice(("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"))
        return Sent("/v1/audio/transcriptions", {"model": model}, files)

    def other(self) -> Sent:
        if self.chance.random() < 0.5:
            return Sent("/v1/embeddings", {"model": "text-embedding-3-small", "input": [self.text() for _ in range(3)]})
        question = {"type": "predicate", "name": "spam", "instructions": self.text()}
        return Sent("/v1/decisions", {"model": "gpt-6-luna", "input": self.text(), "questions": [question]})


KINDS = ("chat", "response", "hosted", "picture_made", "sound", "other")


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_is_billed_more_than_was_held_for_it(
    kind: str, served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    seed = int(os.environ.get("BOUNDS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
    print(f"BOUNDS_SEED={seed}")
    customer = new_customer(served(TOLLKEEPER_BILLING__ALLOWED_TOOLS=ALL_TOOLS), "100000000")
    asker = Asker(random.Random(f"{seed} {kind}"))
    answered: dict[str, Sent] = {}
    with web.client(base_url=customer.server.url, headers=customer.headers, timeout=30) as client:
        for _ in range(REQUESTS):
            sent = getattr(asker, kind)()
            given: dict[str, Any] = {"data": sent.body, "files": sent.files} if sent.files else {"json": sent.body}
            answer = client.post(sent.path, **given)
            assert answer.status_code == 200, (answer.text, {**sent.body, "input": "…"})
            answered[answer.headers["x-request-id"]] = sent
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    for request_id, sent in answered.items():
        record = customer.generation(request_id)
        kinds = customer.transfers(request_id)
        assert "platform_loss" not in kinds, (sent, record)
        assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"]), (sent, record)
        assert record["usageSource"] in ("upstream", "counted")


@pytest.mark.parametrize(
    "text",
    ['\\"\n\t\x00' * 100, "7" * 400, "\\&%#" * 100, "a b " * 100, "Größe 漢字 🙂 " * 30],
    ids=("escapes", "digits", "signs", "letters", "other scripts"),
)
def test_what_is_read_out_by_its_name_is_held_for(
    text: str, served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    """A sign takes longer to say than a letter. Seed 239988 of the test above found it."""
    customer = new_customer(served(TOLLKEEPER_BILLING__ALLOWED_TOOLS=ALL_TOOLS), "100000000")
    answer = customer.post({"model": "gpt-4o-mini-tts", "voice": "alloy", "input": text}, "/v1/audio/speech")
    assert answer.status_code == 200
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    record = customer.generation(answer.headers["x-request-id"])
    assert int(record["chargedMillicredits"]) <= int(record["heldMillicredits"])
    assert "platform_loss" not in customer.transfers(answer.headers["x-request-id"])
