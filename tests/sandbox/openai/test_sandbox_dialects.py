"""The simulators of other servers: in what they differ from OpenAI."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support import web
from tests.support.servers import UPSTREAM_KEY, Sandbox, start_sandbox

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def azure() -> Iterator[Sandbox]:
    server = start_sandbox("--dialect", "azure", "--deployments", '{"acme-mini": "gpt-4o-mini"}')
    yield server
    server.stop()


@pytest.fixture(scope="module")
def generic() -> Iterator[Sandbox]:
    server = start_sandbox("--dialect", "generic", "--api-key", "")
    yield server
    server.stop()


def post(server: Sandbox, body: dict[str, object], **headers: str) -> httpx.Response:
    return web.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=10)


def test_azure_takes_its_own_header_and_names_of_deployments(azure: Sandbox) -> None:
    key = {"api-key": UPSTREAM_KEY}
    assert post(azure, ASKED, Authorization=f"Bearer {UPSTREAM_KEY}").status_code == 401
    missing = post(azure, ASKED, **key)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "DeploymentNotFound")
    assert set(missing.json()["error"]) == {"code", "message"}
    answer = post(azure, {**ASKED, "model": "acme-mini"}, **key).json()
    assert answer["model"] == "gpt-4o-mini-2024-07-18"
    assert "content_filter_results" in answer["choices"][0]
    assert "prompt_filter_results" in answer
    assert "service_tier" not in answer
    assert post(azure, {**ASKED, "model": "acme-mini", "service_tier": "default"}, **key).status_code == 400
    stream = post(azure, {**ASKED, "model": "acme-mini", "stream": True}, **key).text
    assert "prompt_filter_results" in stream.partition("\n\n")[0]


def test_a_generic_server_refuses_what_it_does_not_know_and_streams_without_usage(generic: Sandbox) -> None:
    for member in ({"service_tier": "default"}, {"store": False}, {"stream_options": {"include_usage": True}}):
        refused = post(generic, {**ASKED, **member})
        assert (refused.status_code, refused.json()["object"], refused.json()["code"]) == (400, "error", 400)
    assert post(generic, ASKED).json()["usage"]["completion_tokens"] > 0
    events = [line for line in post(generic, {**ASKED, "stream": True}).text.splitlines() if line.startswith("data: {")]
    assert not any(json.loads(line.removeprefix("data: ")).get("usage") for line in events)
