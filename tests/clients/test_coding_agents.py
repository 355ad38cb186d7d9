"""Coding agents, unmodified, through the proxy: Codex over HTTP and WebSocket, opencode, aider.

Each is given one task in a folder of its own and loops over its own tools; the simulator's `tool_calls` says which. All of
their home folders are temporary, and nothing of theirs has to reach the internet.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import (
    START,
    assert_charged,
    assert_socket_charged,
    environment,
    python,
    run,
    statuses,
    tried,
)
from tests.support.customers import Customer, new_customer
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

MODULES = Path(__file__).parent / "node" / "node_modules"
CODEX = ["node", str(MODULES / "@openai" / "codex" / "bin" / "codex.js")]
OPENCODE = [str(MODULES / "opencode-linux-x64-baseline" / "bin" / "opencode")]
# read-only, and without what Codex does on the side: its plugins are fetched from GitHub, its analytics sent to OpenAI
EXEC = [*CODEX, "exec", "--sandbox", "read-only", "--disable", "plugins", "-c", "analytics.enabled=false"]
PATCH = "*** Begin Patch\n*** Add File: toll.txt\n+42\n*** End Patch"
ECHO = {"cmd": "echo toll"}


@pytest.fixture(scope="module")
def server(session_sandbox: Sandbox, new_folder: Callable[[str], Path]) -> Any:
    running = Tollkeeper(new_folder("agents"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield running
    running.kill()


def at_home(customer: Customer, home: Path) -> tuple[dict[str, str], Path]:
    """Environment with this home folder, and an empty repository in it."""
    work = home / "work"
    work.mkdir()
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    folders = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "DATA", "CACHE", "STATE")}
    return environment(customer, HOME=str(home), **folders), work


def codex(
    customer: Customer, home: Path, model: str, *, sockets: bool = False
) -> tuple[list[str], dict[str, str], Path]:
    """Command, environment and folder of Codex with a provider that is ours, and all else as it comes."""
    named, work = at_home(customer, home)
    config = home / ".codex" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        f'model = "{model}"\nmodel_provider = "metered"\n[model_providers.metered]\nname = "metered"\n'
        f'base_url = "{customer.server.v1}"\nenv_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
        f"supports_websockets = {str(sockets).lower()}\n"
    )
    return EXEC, named | {"CODEX_HOME": str(config.parent)}, work


def outputs(call: dict[str, Any]) -> list[str]:
    """Types of the tool outputs in a request."""
    return [item["type"] for item in call["requestBody"]["input"] if str(item.get("type")).endswith("_output")]


def test_codex_loops_over_its_shell_its_patches_and_its_tool_search(
    server: Tollkeeper, sandbox: Sandbox, tmp_path: Path
) -> None:
    customer = new_customer(server, START)
    script = [
        {"name": "exec_command", "arguments": ECHO},
        {"name": "apply_patch", "arguments": PATCH},
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "toll"}},
    ]
    command, named, work = codex(customer, tmp_path, "gpt-5.5")
    assert run([*command, "pay the toll " + sandbox_says(tool_calls=script)], named, work).strip()
    calls = assert_charged(customer, sandbox)
    assert [outputs(call) for call in calls] == [
        [],
        ["function_call_output"],
        ["function_call_output", "custom_tool_call_output"],
        ["function_call_output", "custom_tool_call_output", "tool_search_output"],
    ]
    body = calls[0]["requestBody"]
    assert {"function", "custom", "tool_search"} <= {tool["type"] for tool in body["tools"]}
    assert body["client_metadata"]


def test_codex_loops_over_tools_that_an_item_brings(server: Tollkeeper, sandbox: Sandbox, tmp_path: Path) -> None:
    customer = new_customer(server, START)
    script = [{"name": "exec", "arguments": 'text(JSON.stringify(await tools.exec_command({cmd: "echo toll"})))'}]
    command, named, work = codex(customer, tmp_path, "gpt-5.6-luna")
    assert run([*command, "pay the toll " + sandbox_says(tool_calls=script)], named, work).strip()
    first, second = assert_charged(customer, sandbox)
    brought = [item for item in first["requestBody"]["input"] if item.get("type") == "additional_tools"]
    assert [tool["type"] for item in brought for tool in item["tools"]] == ["namespace"]
    assert outputs(second) == ["custom_tool_call_output"]


def test_codex_loops_over_a_websocket_it_warms_first(server: Tollkeeper, sandbox: Sandbox, tmp_path: Path) -> None:
    customer = new_customer(server, START)
    script = [{"name": "exec_command", "arguments": ECHO}]
    command, named, work = codex(customer, tmp_path, "gpt-5.5", sockets=True)
    assert run([*command, "pay the toll " + sandbox_says(tool_calls=script)], named, work).strip()
    warmed, first, second = assert_socket_charged(customer, sandbox)
    assert warmed["requestBody"]["generate"] is False
    assert first["requestBody"]["previous_response_id"]
    assert outputs(second) == ["function_call_output"]


def test_codex_says_that_credits_are_out(server: Tollkeeper, tmp_path: Path) -> None:
    customer = new_customer(server, 0)
    command, named, work = codex(customer, tmp_path, "gpt-5.5")
    done = tried([*command, "pay the toll"], named, work)
    assert done.returncode != 0
    assert "credits and 0 are available" in done.stderr
    # it tries any status again five times, whatever `x-should-retry` says
    wait_until(lambda: len(statuses(customer)) == 6, 10, "the access log has them")
    assert set(statuses(customer)) == {402}


def opencode(customer: Customer, home: Path) -> tuple[list[str], dict[str, str], Path]:
    """Command, environment and folder of opencode with OpenAI's own provider at our address."""
    named, work = at_home(customer, home)
    options = {"baseURL": customer.server.v1, "apiKey": customer.api_key}
    (work / "opencode.json").write_text(
        json.dumps(
            {
                "model": "openai/gpt-5.4-mini",
                "small_model": "openai/gpt-5.4-mini",
                "provider": {"openai": {"options": options}},
                "autoupdate": False,
            }
        )
    )
    quiet = ("MODELS_FETCH", "AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD")
    return [*OPENCODE, "run"], named | {f"OPENCODE_DISABLE_{name}": "1" for name in quiet}, work


def test_opencode_loops_over_its_shell(server: Tollkeeper, sandbox: Sandbox, tmp_path: Path) -> None:
    customer = new_customer(server, START)
    script = [{"name": "bash", "arguments": {"command": "echo toll > paid", "description": "Pay the toll"}}]
    command, named, work = opencode(customer, tmp_path)
    assert run(command, named, work, given="pay the toll " + sandbox_says(tool_calls=script)).strip()
    assert (work / "paid").read_text() == "toll\n"
    calls = assert_charged(customer, sandbox)
    # one of them asks for a title, beside
    assert sorted(len(outputs(call)) for call in calls) == [0, 0, 1]


def test_opencode_says_that_credits_are_out(server: Tollkeeper, tmp_path: Path) -> None:
    customer = new_customer(server, 0)
    command, named, work = opencode(customer, tmp_path)
    done = tried(command, named, work, given="pay the toll")
    assert "credits and 0 are available" in done.stdout + done.stderr
    wait_until(lambda: len(statuses(customer)) == 2, 10, "the title and the task were asked for once each")
    assert set(statuses(customer)) == {402}


@pytest.mark.parametrize("options", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_aider_edits_a_file_and_commits_it(
    options: list[str], server: Tollkeeper, sandbox: Sandbox, tmp_path: Path
) -> None:
    customer = new_customer(server, START)
    named, work = at_home(customer, tmp_path)
    (work / "toll.txt").write_text("free\n")
    # without them it fetches the prices of all models from GitHub
    prices = tmp_path / ".aider" / "caches" / "model_prices_and_context_window.json"
    prices.parent.mkdir(parents=True)
    prices.write_text(json.dumps({"gpt-4.1": {"max_input_tokens": 1_000_000, "litellm_provider": "openai"}}))
    command = [
        python("aider"), "-m", "aider", "--model", "openai/gpt-4.1", "--edit-format", "whole", "--yes-always",
        "--no-check-update", "--no-show-release-notes", "--analytics-disable", *options,
    ]  # fmt: skip
    edit = sandbox_says(text="toll.txt\n```\n42 credits\n```\n")
    task = ["--message", "raise the toll " + edit, "toll.txt"]
    author = {f"GIT_{who}_{what}": "toll@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    run([*command, *task], named | author | {"PATH": os.environ["PATH"]}, work)
    assert (work / "toll.txt").read_text() == "42 credits\n"
    calls = assert_charged(customer, sandbox)
    assert [call["requestBody"].get("stream", False) for call in calls][0] is not bool(options)
