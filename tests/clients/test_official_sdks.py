"""Unmodified official clients, with nothing set but base_url and api_key, get from us what they would get from OpenAI.

Python 3.x of the SDK runs in our environment, 2.x in one of its own, npm's on node; what is missing fails. Each makes
the same calls once (calls.py, node/calls.mjs) and prints what it saw; the tests compare that with the sandbox's record.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.programs import node
from tests.support.servers import ROOT, Sandbox, Tollkeeper, sandbox_says, wait_until

HERE = Path(__file__).parent
SDKS = {"python 3.x": "3.", "python 2.x": "2.", "npm": "7."}
# steering is in the text of each call, so that the clients know nothing of it
TEXTS = {
    "chat": "tell me of toll roads",
    "stream": "tell me of bridges",
    "stream_with_usage": "tell me of ferries",
    "tools": "how is the weather in Paris",
    "two_choices": "twice please",
    "embeddings": "a road with a toll",
    "legacy": "once upon a time",
    "models": "",
    "insufficient": "too dear",
    "unknown_key": "who am I",
    "unknown_model": "which model",
    "bad_request": "no choices",
    "own_limit": "long " + sandbox_says(output_tokens=3_000),
    "upstream_limit": "busy " + sandbox_says(status=429, error="429_requests", headers={"retry-after-ms": "20"}),
    "leave_stream": "leaving " + sandbox_says(output_tokens=500, chunk_interval_ms=20),
    "two_threads": "many",
    "stores": "the refund policy of whales " + sandbox_says(calls=["file_search"]),
}


@dataclass
class Seen:
    """What one SDK saw, who it was, and what the upstream recorded of it."""

    found: dict[str, Any]
    accounts: dict[str, Customer]
    records: list[dict[str, Any]]

    def of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.found[name]
        assert "raised" not in found, found
        return found

    def upstream(self, text: str) -> list[dict[str, Any]]:
        """The upstream's records of the requests that carried this text."""
        return [row for row in self.records if text in json.dumps(row["requestBody"])]

    def statuses(self, key: str) -> list[int]:
        """What requests of this key were answered with, from our access log."""
        server = self.accounts["rich"].server
        lines = [json.loads(line) for line in server.log().splitlines() if '"event":"request"' in line]
        return [line["status"] for line in lines if line["key"] == self.accounts[key].key_id]


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    home = new_folder("sdks")
    server = Tollkeeper(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    yield server
    server.kill()


@pytest.fixture(scope="module", params=SDKS)
def seen(request: pytest.FixtureRequest, server: Tollkeeper, session_sandbox: Sandbox) -> Seen:
    """Make the calls with one SDK, every key and account its own."""
    accounts = {
        "rich": new_customer(server),
        "poor": new_customer(server, 1_000),
        "limited": new_customer(server, tokens_per_minute=6_000),
    }
    last = session_sandbox.record(brief="1")
    commands = {
        "python 3.x": [sys.executable, str(HERE / "calls.py")],
        "python 2.x": [str(ROOT / ".venv-openai2" / "bin" / "python"), str(HERE / "calls.py")],
        "npm": [node(), "calls.mjs"],
    }
    environment = {
        "PATH": os.environ["PATH"],
        "BASE_URL": server.v1,
        "KEYS": json.dumps(
            {**{name: account.api_key for name, account in accounts.items()}, "unknown": "tk-" + "x" * 43}
        ),
        "TEXTS": json.dumps(TEXTS),
    }
    done = subprocess.run(
        commands[request.param],
        cwd=HERE / "node",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert told["version"].startswith(SDKS[request.param])
    records = session_sandbox.record(since=last[-1]["seq"] if last else 0)
    return Seen(told["found"], accounts, records)


def test_a_chat_is_answered_as_by_openai_and_says_what_it_cost(seen: Seen) -> None:
    found = seen.of("chat")
    (row,) = seen.upstream(TEXTS["chat"])
    assert found["content"] == row["textSent"]
    assert found["usage"] == row["usageSent"]
    # gpt-4o-mini: 0.15 / 0.60 USD per million tokens, rounded up to the millicredit
    usage = row["usage"]
    charged = -(-(usage["prompt_tokens"] * 15 + usage["completion_tokens"] * 60) // 100)
    assert found["headers"]["x-credits-charged"] == str(charged / 1_000)
    assert 0 < float(found["headers"]["x-credits-remaining"]) <= 1_000_000 - charged / 1_000
    assert found["requestId"] == found["headers"]["x-request-id"] == row["clientRequestId"]
    assert found["retries"] == 0


def test_a_stream_hides_the_usage_that_its_client_did_not_ask_for(seen: Seen) -> None:
    found = seen.of("stream")
    (row,) = seen.upstream(TEXTS["stream"])
    assert found["content"] == row["textSent"]
    assert row["usageSent"] is not None
    assert found["usages"] == []
    assert found["emptyChoices"] == 0
    assert float(found["held"]) > 0
    assert found["requestId"] == row["clientRequestId"]


def test_a_stream_ends_with_the_usage_that_its_client_asked_for(seen: Seen) -> None:
    found = seen.of("stream_with_usage")
    (row,) = seen.upstream(TEXTS["stream_with_usage"])
    assert found["content"] == row["textSent"]
    assert found["usages"] == [row["usageSent"]]
    assert found["lastHasUsage"]


def test_tools_are_called_and_their_results_taken(seen: Seen) -> None:
    found = seen.of("tools")
    first, second = seen.upstream(TEXTS["tools"])
    assert (found["finish"], found["name"], found["arguments"]) == ("tool_calls", "get_weather", ["city"])
    assert found["then"] == second["textSent"]
    assert [message["role"] for message in second["requestBody"]["messages"]] == ["user", "assistant", "tool"]
    assert first["requestBody"]["tool_choice"] == "required"


def test_two_choices_are_two_answers_in_one_bill(seen: Seen) -> None:
    found = seen.of("two_choices")
    (row,) = seen.upstream(TEXTS["two_choices"])
    assert found["indexes"] == [0, 1]
    assert found["usage"] == row["usageSent"]
    assert found["usage"]["completion_tokens"] == 20


def test_embeddings_come_as_numbers_out_of_the_sdks_own_base64(seen: Seen) -> None:
    found = seen.of("embeddings")
    (row,) = seen.upstream(TEXTS["embeddings"])
    assert row["requestBody"]["encoding_format"] == "base64"
    assert found["lengths"] == [1_536, 1_536]
    assert found["types"] == ["float"]
    assert found["usage"] == row["usageSent"]


def test_legacy_completions_are_served(seen: Seen) -> None:
    found = seen.of("legacy")
    plain, streamed = seen.upstream(TEXTS["legacy"])
    assert found["text"] == plain["textSent"]
    assert found["streamed"] == streamed["textSent"]
    assert found["usage"] == plain["usageSent"]
    assert found["usage"]["completion_tokens"] == 7


def test_models_are_listed_and_found(seen: Seen) -> None:
    found = seen.of("models")
    assert found["one"] == "gpt-4o-mini"
    assert {"gpt-4o-mini", "text-embedding-3-small", "gpt-3.5-turbo-instruct"} <= set(found["listed"])
    assert len(found["listed"]) == len(set(found["listed"]))


def test_out_of_credits_is_an_api_status_error_that_is_not_retried(seen: Seen) -> None:
    found = seen.of("insufficient")
    assert found["class"] in ("APIStatusError", "APIError")
    assert (found["status"], found["code"], found["type"]) == (402, "insufficient_credits", "insufficient_credits")
    # SDKs hand over the inner object: the figures are there too
    assert found["body"]["currentCredits"] == found["body"]["availableCredits"] == 1
    # 10,000 output tokens at 0.60 USD a million are 6 credits; the few input tokens are on top of them
    assert 6 < found["body"]["requiredCredits"] < 6.1
    assert found["body"]["limitSource"] == "balance"
    # what 1,000 millicredits leave for output at 0.6 millicredits a token, after the input
    assert 1_600 < found["body"]["affordableOutputTokens"] <= 1_666
    assert found["requestId"].startswith("req_")
    assert seen.statuses("poor") == [402]
    assert seen.upstream(TEXTS["insufficient"]) == []


def test_an_unknown_key_is_an_authentication_error(seen: Seen) -> None:
    found = seen.of("unknown_key")
    assert (found["class"], found["status"], found["code"]) == ("AuthenticationError", 401, "invalid_api_key")
    assert seen.upstream(TEXTS["unknown_key"]) == []


def test_what_is_not_offered_is_not_found(seen: Seen) -> None:
    found = seen.of("unknown_model")
    assert {name: (one["class"], one["status"], one["code"]) for name, one in found.items()} == {
        "chat": ("NotFoundError", 404, "model_not_found"),
        "retrieve": ("NotFoundError", 404, "model_not_found"),
        "endpoint": ("PermissionDeniedError", 403, "endpoint_not_offered"),
    }
    assert seen.upstream(TEXTS["unknown_model"]) == []


def test_a_bad_value_is_a_bad_request(seen: Seen) -> None:
    found = seen.of("bad_request")
    assert (found["class"], found["status"], found["body"]["param"]) == ("BadRequestError", 400, "n")


def test_a_keys_own_rate_limit_is_waited_for_and_retried_by_the_sdk(seen: Seen) -> None:
    found = seen.of("own_limit")
    assert (found["first"], found["second"]) == (3_000, 3_000)
    assert found["retries"] == 1
    assert seen.statuses("limited") == [200, 429, 200]
    assert len(seen.upstream("long [[sandbox")) == 2


def test_the_upstreams_rate_limit_is_retried_twice_and_then_told(seen: Seen) -> None:
    found = seen.of("upstream_limit")
    assert (found["class"], found["status"]) == ("RateLimitError", 429)
    assert [row["status"] for row in seen.upstream("busy [[sandbox")] == [429] * 3


def test_leaving_a_stream_cancels_the_upstream_and_pays_for_what_was_sent(seen: Seen, session_sandbox: Sandbox) -> None:
    found = seen.of("leave_stream")
    request_id = found["requestId"]

    def ended() -> dict[str, Any] | None:
        (row,) = session_sandbox.record(clientRequestId=request_id)
        return row if row["finishedAt"] else None

    row = wait_until(ended, 10, "the upstream is cancelled")
    assert row["outcome"] == "client_gone"
    assert row["textSent"].startswith(found["content"])
    rich = seen.accounts["rich"]
    url = f"{rich.server.url}/api/billing/generations/{request_id}"
    wait_until(lambda: web.get(url, headers=rich.headers).status_code == 200, 10, "it is charged")
    record = web.get(url, headers=rich.headers).json()
    assert (record["usageSource"], record["outcome"]) == ("counted", "client_gone")
    assert 0 < record["outputTokens"] <= row["usage"]["completion_tokens"] < 500
    wait_until(lambda: rich.held() == 0, 10, "nothing stays held")


def test_one_client_serves_many_threads(seen: Seen) -> None:
    assert seen.of("two_threads")["completionTokens"] == [5] * 8
    assert len(seen.upstream(TEXTS["two_threads"] + " ")) == 8


def test_a_vector_store_is_filled_read_searched_and_taken_away(seen: Seen) -> None:
    found = seen.of("stores")
    assert found["results"] == found["found"] == [found["file"]]
    assert (found["completed"], found["bytes"], found["deleted"]) == (1, 54 * 3 // 2, [True, True])
    (asked,) = (row for row in seen.upstream("the refund policy of whales") if row["path"] == "/v1/responses")
    assert asked["toolUsage"]["file_search"] == {"num_requests": 1}


def test_the_customer_paid_for_all_of_it_and_the_books_agree(seen: Seen) -> None:
    rich = seen.accounts["rich"]
    wait_until(lambda: rich.held() == 0, 10, "nothing stays held")
    server, limited = rich.server, seen.accounts["limited"]
    assert server.cli("drain")["pendingCharges"] == 0
    rows = server.cli("usage", rich.account_id, "--limit", "1000")["data"]
    assert rich.balance() == 1_000_000_000 - sum(int(row["chargedMillicredits"]) for row in rows)
    rows += server.cli("usage", limited.account_id)["data"]
    assert {row["requestId"] for row in rows} == {
        row["clientRequestId"] for row in seen.records if row["status"] == 200 and row["usage"] is not None
    }
    assert server.cli("reconcile") == {"ok": True, "findings": []}
