"""What people build with, unmodified, through the proxy: SDKs, frameworks and agents on what they do by default.

Each runs its ordinary examples with nothing but a base URL and a key; every call it makes is charged by the upstream's own record.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import START, assert_charged, environment, python, run, statuses, tried
from tests.support.customers import new_customer
from tests.support.servers import ROOT, Sandbox, Tollkeeper, wait_until

HERE = Path(__file__).parent
COMMANDS = {
    "ai": ["node", str(HERE / "node" / "ai.mjs")],
    "@langchain/openai": ["node", str(HERE / "node" / "langchain.mjs")],
    "@openai/agents": ["node", str(HERE / "node" / "agents.mjs")],
    **{
        name: [python(environment), str(HERE / "ecosystem" / f"{program}.py")]
        for name, environment, program in (
            ("instructor", "openai2", "instructor_calls"),
            ("langchain-openai", "ecosystem", "langchain_calls"),
            ("langchain-openai on responses", "ecosystem", "langchain_responses_calls"),
            ("litellm", "ecosystem", "litellm_calls"),
            ("llama-index", "openai2", "llama_index_calls"),
            ("openai-agents", "ecosystem", "openai_agents_calls"),
            ("pydantic-ai", "ecosystem", "pydantic_ai_calls"),
        )
    },
}
# whose later steps name what OpenAI has stored of the earlier ones: how, in how many requests at least
BY_REFERENCE = {
    "ai": ("item_reference", 4),
    "@openai/agents": ("previous_response_id", 1),
    "@langchain/openai": ("previous_response_id", 1),
    "langchain-openai on responses": ("previous_response_id", 1),
    "litellm": ("previous_response_id", 2),
    "llama-index": ("previous_response_id", 1),
    "openai-agents": ("previous_response_id", 2),
}


@pytest.fixture(scope="module")
def server(session_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("ecosystem")
    running = Tollkeeper(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield running
    running.kill()


@pytest.mark.parametrize("name", COMMANDS)
def test_its_ordinary_examples_run_and_are_charged(name: str, server: Tollkeeper, sandbox: Sandbox) -> None:
    customer = new_customer(server, START)
    found = json.loads(run(COMMANDS[name], environment(customer)))
    assert all(found.values()), found
    calls = assert_charged(customer, sandbox)
    reference, times = BY_REFERENCE.get(name, ("previous_response_id", 0))
    named = [call for call in calls if reference in json.dumps(call["requestBody"]) and call["path"] == "/v1/responses"]
    assert len(named) >= times


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_account_is_told_in_our_words_and_asked_for_once(name: str, server: Tollkeeper) -> None:
    customer = new_customer(server, 0)
    done = tried(COMMANDS[name], environment(customer))
    assert done.returncode != 0
    assert "credits and 0 are available" in done.stdout + done.stderr
    wait_until(lambda: statuses(customer), 10, "the access log has it")
    assert statuses(customer) == [402]


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
