"""Requests made at random out of the official SDK's own types: each is planned or refused in words, never a fault.

The walk that finds what the inventory lacks (scripts/surface.py) knows the types; here they say what a client may send.
What is taken goes upstream with every member as it was sent, but for those that we set.
"""

import importlib
import json
import random
import re
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest
from openai._qs import Querystring
from typing_extensions import is_typeddict

from config.settings import Settings
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import make_plan
from proxy.gateway.upstream.request_body import body_to_send
from proxy.web.rejections import Rejection
from scripts.surface import SURFACE, SdkUnion, members_of
from tests.support.plans import PRICES, TODAY, key

REQUESTS = 150
DEEPEST = 7
MODELS = {
    "/v1/completions": "gpt-3.5-turbo-instruct",
    "/v1/embeddings": "text-embedding-3-small",
    "/v1/images/generations": "gpt-image-2",
    "/v1/images/edits": "gpt-image-2",
    "/v1/audio/speech": "gpt-4o-mini-tts",
    "/v1/audio/transcriptions": "gpt-4o-transcribe",
    "/v1/moderations": "omni-moderation-latest",
    "/v1/decisions": next(name for name in PRICES.names() if "/v1/decisions" in PRICES.find(name).endpoints),
}
BY_FORM = ("/v1/images/edits", "/v1/audio/transcriptions", "/v1/audio/translations")
OURS = {
    *("service_tier", "stream_options", "store", "max_tool_calls", "user", "safety_identifier", "prompt_cache_key"),
    *("max_output_tokens", "max_completion_tokens", "max_tokens", "stream_format"),
}
"""Members that we may set or rename: tier, usage reporting, caps, a tenant's own names, a form of sound with usage."""


def path_of(union: SdkUnion) -> str:
    return union.name.rpartition(" ")[2]


JSON_REQUESTS = [
    union
    for union in SURFACE
    if union.fields and not union.name.endswith(BY_FORM) and ("POST", path_of(union).encode()) in METERED
]
WORDS = ("", "hi", "a b c", "é\u2028", "data:image/png;base64,iVBORw0KGgo=", "https://example.com/x.png", "id_1")


class Maker:
    """Values of a type, at random; `dice` decides."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.by_type: dict[Any, Callable[[], Any]] = {
            str: lambda: dice.choice(WORDS),
            int: lambda: dice.choice((0, 1, 2, 16, 1_000)),
            float: lambda: dice.choice((0, 0.5, 1, 2.0)),
            bool: lambda: dice.random() < 0.5,
            type(None): lambda: None,
        }

    def value(self, kind: Any, depth: int = 0) -> Any:
        """Make a value of a type; of a union any member, of a TypedDict its required members and some others."""
        kind = self.dice.choice(list(members_of(kind)))
        origin = get_origin(kind)
        if origin in (typing.Required, typing.NotRequired):
            return self.value(get_args(kind)[0], depth)
        if origin is Literal:
            return self.dice.choice(get_args(kind))
        if kind in self.by_type:
            return self.by_type[kind]()
        if is_typeddict(kind):
            return self.object(kind, depth + 1)
        if origin is dict:
            return {"name": self.value(get_args(kind)[1], depth + 1)} if depth < DEEPEST else {}
        if origin is not None and get_args(kind):  # Iterable, Sequence, list
            return [self.value(get_args(kind)[0], depth + 1) for _ in range(self.dice.randint(0, 2))]
        return self.dice.choice(({}, "x", 1))  # `object`: any JSON

    def object(self, kind: Any, depth: int, often: float = 0.3) -> dict[str, Any]:
        """Make a TypedDict's object."""
        made = {}
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if get_origin(hint) is typing.Required or (depth < DEEPEST and self.dice.random() < often):
                made[name] = self.value(hint, depth)
        return made


def fields_of(union: SdkUnion) -> Any:
    return getattr(importlib.import_module(f"openai.types.{union.module}"), union.type)


@pytest.mark.parametrize("union", JSON_REQUESTS, ids=lambda union: str(union.name))
def test_a_request_of_the_sdks_types_is_planned_or_refused_in_words(union: SdkUnion) -> None:
    path = path_of(union)
    endpoint = METERED["POST", path.encode()]
    maker = Maker(random.Random(union.name))  # noqa: S311 - the same requests every time
    planned = 0
    for _ in range(REQUESTS):
        sent = maker.object(fields_of(union), 0, often=maker.dice.choice((0.02, 0.1, 0.3)))
        sent["model"] = MODELS.get(path, "gpt-5.4-mini")
        body = json.dumps(sent).encode()
        try:
            plan = make_plan(
                endpoint, endpoint.parse(body, b"application/json"), key(), PRICES, Settings(), today=TODAY
            )
        except Rejection as refusal:
            assert 400 <= refusal.status < 500, (refusal.code, sent)
            assert refusal.code, sent
            assert refusal.message.endswith((".", ")")), (refusal.message, sent)
            continue
        planned += 1
        forwarded = json.loads(body_to_send(plan, Settings().billing, lambda name: name.decode()))
        assert {name: value for name, value in forwarded.items() if name not in OURS} == {
            name: value for name, value in sent.items() if name not in OURS
        }
    assert planned, "nothing of what the SDK may send was taken"


def form_of(sent: dict[str, Any], files: set[str]) -> bytes:
    """A multipart body as the SDK writes it: lists `x[]`, objects `x[y]`."""
    fields = {name: value for name, value in sent.items() if name not in files}
    parts = [
        b"--b\r\n" + b'Content-Disposition: form-data; name="%b"; filename="f"\r\n\r\nRIFF' % name.encode()
        for name in files
    ]
    for name, value in Querystring().stringify_items(fields, array_format="brackets"):
        parts.append(b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b' % (name.encode(), value.encode()))
    return b"".join(part + b"\r\n" for part in parts) + b"--b--\r\n"


@pytest.mark.parametrize("path", BY_FORM)
def test_a_form_of_the_sdks_types_is_planned_or_refused_in_words(path: str) -> None:
    union = next(one for one in SURFACE if one.fields and one.name.endswith(path))
    endpoint, maker, planned = METERED["POST", path.encode()], Maker(random.Random(path)), 0  # noqa: S311 - as above
    for _ in range(REQUESTS):
        sent = maker.object(fields_of(union), 0, often=maker.dice.choice((0.02, 0.1, 0.3)))
        sent["model"] = MODELS.get(path, "whisper-1")
        files = {"file", "image", "mask", "markup"} & sent.keys()
        body = form_of(sent, files)
        try:
            plan = make_plan(
                endpoint,
                endpoint.parse(body, b"multipart/form-data; boundary=b"),
                key(),
                PRICES,
                Settings(),
                today=TODAY,
            )
        except Rejection as refusal:
            assert 400 <= refusal.status < 500, (refusal.code, sent)
            assert refusal.code not in ("unknown_parameter", "invalid_form"), (refusal.message, sent)
            assert refusal.message.endswith((".", ")")), (refusal.message, sent)
            continue
        planned += 1
        forwarded = body_to_send(plan, Settings().billing, lambda name: name.decode())
        for part in body.split(b"--b")[1:-1]:
            if not part.endswith(b"\r\n\r\n\r\n") and not re.search(
                rb'name="(user|stream|response_format|safety_\w+)"', part
            ):
                assert part in forwarded
    assert planned, "nothing of what the SDK may send was taken"
