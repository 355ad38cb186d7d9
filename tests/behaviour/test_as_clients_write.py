"""Requests written as programs write them, not as documentation does: taken, sent on as they came, charged by the bill."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.support import web
from tests.support.media import png, wav
from tests.support.served import Customer
from tests.support.servers import wait_until
from tests.support.sockets import opened, rows, until

RESPONSES, CHAT, LEGACY = "/v1/responses", "/v1/chat/completions", "/v1/completions"


def sent(customer: Customer, answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(customer.finished(answer.headers["x-request-id"])["requestBodyBase64"])


def charged_as_held_for(customer: Customer, answer: httpx.Response) -> bool:
    row = customer.generation(answer.headers["x-request-id"])
    return 0 < int(row["chargedMillicredits"]) <= int(row["heldMillicredits"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}],"max_tokens":1.6e1,"n":2.0}'),
        (LEGACY, b'{"model":"gpt-3.5-turbo-instruct","prompt":[[1.0,2]],"max_tokens":16.0,"n":1e0,"best_of":0}'),
        (RESPONSES, b'{"model":"gpt-4.1","input":"hello","max_output_tokens":1.6e1}'),
        ("/v1/embeddings", b'{"model":"text-embedding-3-small","input":[1.0,2]}'),
        ("/v1/images/generations", b'{"model":"gpt-image-2","prompt":"hello","n":2.0,"quality":"low"}'),
    ],
)
def test_whole_numbers_with_a_point_are_taken(customer: Customer, path: str, body: bytes) -> None:
    answer = customer.post(body, path)
    written = [number for number in (b"1.6e1", b"2.0", b"16.0", b"1.0") if number in body]
    assert all(number in sent(customer, answer) for number in written)
    assert charged_as_held_for(customer, answer)
    refused = customer.post(body.replace(written[0], b"16.5"), path)
    assert (refused.status_code, "whole number" in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, rb'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"cut \ud83d here"}],"user":"\udc00"}'),
        (LEGACY, rb'{"model":"gpt-3.5-turbo-instruct","prompt":"cut \ud83d here"}'),
        (RESPONSES, rb'{"model":"gpt-4.1","input":"cut \ud83d here"}'),
        (RESPONSES, rb'{"model":"gpt-4.1","input":[{"role":"user","content":"cut \ud83d here"}],"stream":true}'),
    ],
)
@pytest.mark.parametrize("credits", ["1000000", "8"], ids=["bounded", "counted"])
def test_a_text_that_was_cut_in_an_emoji_goes_on_as_it_came(
    served: Callable[..., Any], new_customer: Callable[..., Customer], path: str, body: bytes, credits: str
) -> None:
    customer = new_customer(served(), credits)
    answer = customer.post(body, path)
    assert rb"cut \ud83d here" in sent(customer, answer)
    assert charged_as_held_for(customer, answer)


def test_a_socket_reads_as_a_request_is_read(customer: Customer) -> None:
    with opened(customer, "/responses") as socket:
        for body in (r'"input":"cut \ud83d here"', '"input":"hello","max_output_tokens":1.6e1'):
            socket.send('{"type":"response.create","model":"gpt-4.1",' + body + "}")
            until(socket, "response.completed", "response.incomplete")
        socket.send('{"type":"response.create","model":"gpt-4.1","input":"x",}')
        error = until(socket, "error")[-1]["error"]
        assert (error["code"], "near byte" in error["message"]) == ("invalid_event", True)
    found = [
        base64.b64decode(row["requestBodyBase64"]) for row in customer.sandbox.record() if row["requestBodyBase64"]
    ]
    assert any(rb"cut \ud83d here" in one for one in found)
    assert len(rows(customer, 2)) >= 2
    with opened(customer, "/realtime?model=gpt-realtime-2.1") as socket:
        session = {"type": "realtime", "max_output_tokens": 100.0, "instructions": "INSTRUCTIONS"}
        socket.send(json.dumps({"type": "session.update", "session": session}).replace("INSTRUCTIONS", r"\ud83d"))
        until(socket, "session.updated")
        socket.send('{"type":"response.create","response":{"max_output_tokens":5.0e1,"output_modalities":["text"]}}')
        done = until(socket, "response.done")[-1]["response"]
        assert 0 < done["usage"]["output_tokens"] <= 50
        socket.send('{"type":"response.create","response":{"max_output_tokens":50.5}}')
        assert "whole number" in until(socket, "error")[-1]["error"]["message"]
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")


# -- forms --------------------------------------------------------------------------------------------


def form(customer: Customer, path: str, *parts: tuple[bytes, bytes]) -> httpx.Response:
    written = (
        b"".join(b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts) + b"--b--\r\n"
    )
    headers = {**customer.headers, "Content-Type": "multipart/form-data; boundary=b"}
    return web.post(customer.server.url + path, content=written, headers=headers, timeout=30)


MODEL, FILE = (b'name="model"', b"gpt-4o-transcribe"), (b"name=\"file\"; filename*=UTF-8''%C3%A9.wav", wav(2))


def test_objects_of_a_form_arrive_as_they_were_sent(customer: Customer) -> None:
    chunking = [
        (b'name="chunking_strategy[type]"', b"server_vad"),
        (b'name="chunking_strategy[silence_duration_ms]"', b"2e2"),
        (b'name="include[]"', b"logprobs"),
    ]
    answer = form(customer, "/v1/audio/transcriptions", MODEL, FILE, *chunking)
    body = sent(customer, answer)
    assert all(name in body and value in body for name, value in (*chunking, FILE))
    assert charged_as_held_for(customer, answer)
    refused = form(customer, "/v1/audio/transcriptions", MODEL, FILE, (b'name="model[]"', b"whisper-1"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_the_sdks_objects_of_forms_are_taken(customer: Customer) -> None:
    client = OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)
    heard = client.audio.transcriptions.create(
        model="gpt-4o-transcribe",
        file=("a.wav", wav(2)),
        chunking_strategy={"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 100},
        include=["logprobs"],
    )
    assert heard.text
    drawn = client.images.edit(
        model="gpt-image-2.6-sunburst",
        image=[("a.png", png(64, 64)), ("b.png", png(64, 64))],
        markup=("m.png", png(64, 64)),
        prompt="x",
        output_format="svg",
        svg={"model": "gpt-6-luna", "reasoning": {"effort": "low"}},
    )
    assert drawn.data
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")


def test_what_was_left_empty_is_not_there(customer: Customer) -> None:
    empty = [(b'name="language"', b""), (b'name="stream"', b""), (b'name="mask"; filename=""', b"")]
    answer = form(customer, "/v1/audio/transcriptions", empty[0], MODEL, empty[1], FILE)
    assert b"language" not in sent(customer, answer)
    picture = (b'name="image"; filename=a.png', png(64, 64))
    answer = form(customer, "/v1/images/edits", (b'name="prompt"', b"x"), (b'name="n"', b"2.0"), empty[2], picture)
    assert len(answer.json()["data"]) == 2
    assert charged_as_held_for(customer, answer)
    refused = form(customer, "/v1/audio/transcriptions", (b'name="model"', b""), FILE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "missing_required_parameter")
