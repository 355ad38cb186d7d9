"""What people build with: ai + @ai-sdk/openai, langchain-openai, pydantic-ai and the llm CLI, unmodified, through the proxy.

Each runs its ordinary examples with nothing but a base URL and a key; every call it makes is charged by the upstream's own record.
"""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.customers import Customer, new_customer
from tests.support.media import wav
from tests.support.programs import node
from tests.support.served import usd_to_charge
from tests.support.servers import ROOT, Sandbox, Tollkeeper, wait_until

HERE = Path(__file__).parent
PYTHON = str(ROOT / ".venv-ecosystem" / "bin" / "python")
START = 1_000_000_000
# USD per million tokens, by hand: text in, text out
PRICES = {"gpt-4.1": ("2", "8"), "text-embedding-3-small": ("0.02", "0")}
COMMANDS = {
    "ai": ["node", str(HERE / "node" / "ai.mjs")],
    "langchain-openai": [PYTHON, str(HERE / "ecosystem" / "langchain_calls.py")],
    "pydantic-ai": [PYTHON, str(HERE / "ecosystem" / "pydantic_ai_calls.py")],
}


@pytest.fixture(scope="module")
def server(session_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("ecosystem")
    running = Tollkeeper(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield running
    running.kill()


def environment(customer: Customer, **more: str) -> dict[str, str]:
    named = {
        "OPENAI_BASE_URL": customer.server.v1,
        "OPENAI_API_KEY": customer.api_key,
        "WAV": base64.b64encode(wav(1)).decode(),
    }
    return {**os.environ, **named, **more}


def run(command: list[str], environment: dict[str, str]) -> str:
    command = [node() if command[0] == "node" else command[0], *command[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def text_charge(row: dict[str, Any]) -> int:
    """What a call of a text model costs by the upstream's record."""
    price_in, price_out = PRICES[row["requestBody"]["model"]]
    usage = row["usage"]
    tokens_in = usage.get("prompt_tokens", usage.get("input_tokens"))
    tokens_out = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return usd_to_charge((tokens_in, price_in), (tokens_out, price_out))


def assert_charged(customer: Customer, sandbox: Sandbox) -> None:
    """Every call that the upstream served is a row of the right charge, and nothing else is."""
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    calls = {row["clientRequestId"]: row for row in sandbox.record() if row["method"] == "POST"}
    rows = {row["requestId"]: row for row in customer.usage()}
    assert rows.keys() == calls.keys()
    for request_id, call in calls.items():
        assert call["status"] == 200, call
        if call["requestBody"].get("model") in PRICES:
            assert int(rows[request_id]["chargedMillicredits"]) == text_charge(call), call["path"]
        assert (rows[request_id]["usageSource"], rows[request_id]["outcome"]) == ("upstream", "completed")
    assert customer.balance() == START - sum(int(row["chargedMillicredits"]) for row in rows.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_its_ordinary_examples_run_and_are_charged(name: str, server: Tollkeeper, sandbox: Sandbox) -> None:
    customer = new_customer(server, START)
    found = json.loads(run(COMMANDS[name], environment(customer)))
    assert all(found.values()), found
    assert_charged(customer, sandbox)


@pytest.mark.parametrize("options", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_the_llm_command_prompts_and_is_charged(
    options: list[str], server: Tollkeeper, sandbox: Sandbox, tmp_path: Path
) -> None:
    customer = new_customer(server, START)
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: metered\n  model_name: gpt-4.1\n  api_base: {server.v1}\n  api_key_name: metered\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"metered": customer.api_key}))
    llm = str(ROOT / ".venv-ecosystem" / "bin" / "llm")
    said = run(
        [llm, "prompt", "-m", "metered", *options, "tell me of toll roads"],
        environment(customer, LLM_USER_PATH=str(tmp_path)),
    )
    assert said.strip()
    assert_charged(customer, sandbox)
