"""Programs that others wrote, run with nothing but a base URL and a key, and what their calls cost by the upstream's record."""

import base64
import json
import os
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.customers import Customer
from tests.support.media import wav
from tests.support.programs import node
from tests.support.served import usd_to_charge
from tests.support.servers import ROOT, Sandbox, sandbox_says, wait_until

START = 1_000_000_000
# USD per million tokens, by hand: text in, text out
PRICES = {
    "gpt-4o-mini": ("0.15", "0.6"),
    "gpt-4.1": ("2", "8"),
    "gpt-4.1-mini": ("0.4", "1.6"),
    "gpt-5.4-mini": ("0.75", "4.5"),
    "gpt-5.5": ("5", "30"),
    "gpt-5.6-luna": ("0.2", "1.2"),
    "text-embedding-3-small": ("0.02", "0"),
}
# those of models that draw, speak and hear: pictures, sound
MEDIA = {
    "gpt-image-2": ("5", "30"),
    "gpt-4o-mini-tts": ("0.6", "12"),
    "gpt-4o-transcribe": ("2.5", "10"),
}
HEARD = "6"
"""USD per million tokens of sound that gpt-4o-transcribe hears."""
# two steps over the tool `weather`, then words
WEATHER_LOOP = "how is the weather in Paris " + sandbox_says(
    tool_calls=[{"name": "weather", "arguments": {"city": city}} for city in ("Paris", "Rome")]
)
Done = subprocess.CompletedProcess[str]


def python(environment: str) -> str:
    """Path of the Python that `make install-dev` made for clients whose packages clash with ours."""
    return str(ROOT / f".venv-{environment}" / "bin" / "python")


def environment(customer: Customer, **more: str) -> dict[str, str]:
    """Return what the programs read; nothing of theirs reaches the internet."""
    named = {
        "OPENAI_BASE_URL": customer.server.v1,
        "OPENAI_API_BASE": customer.server.v1,
        "OPENAI_API_KEY": customer.api_key,
        "WAV": base64.b64encode(wav(1)).decode(),
        "WEATHER_LOOP": WEATHER_LOOP,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return {**os.environ, **named, **more}


def tried(command: list[str], environment: dict[str, str], folder: Path | None = None, given: str = "") -> Done:
    """Run a program to its end, however that is."""
    command = [node() if command[0] == "node" else command[0], *command[1:]]
    if folder is not None:
        # a program may believe the shell's word for where it is
        environment = environment | {"PWD": str(folder)}
    return subprocess.run(
        command, env=environment, cwd=folder, input=given, capture_output=True, text=True, timeout=180, check=False
    )


def run(command: list[str], environment: dict[str, str], folder: Path | None = None, given: str = "") -> str:
    """Run a program that has to end well, and return what it printed."""
    done = tried(command, environment, folder, given)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-3_000:]
    return done.stdout


def statuses(customer: Customer) -> list[int]:
    """What the customer's requests were answered with, from our access log, which may come a moment later."""
    lines = [json.loads(line) for line in customer.server.log().splitlines() if '"event":"request"' in line]
    return [line["status"] for line in lines if line["key"] == customer.key_id]


def charge_of(row: dict[str, Any]) -> int:
    """What a call costs by the upstream's record."""
    price_in, price_out = {**PRICES, **MEDIA}[row["requestBody"]["model"]]
    usage = row["usage"]
    heard = usage.get("input_token_details", {}).get("audio_tokens", 0)
    tokens_in = usage.get("prompt_tokens", usage.get("input_tokens"))
    tokens_out = usage.get("completion_tokens", usage.get("output_tokens", 0))
    # a prompt that is prepared on a WebSocket is written to the cache: a quarter more
    written = usage.get("input_tokens_details", {}).get("cache_write_tokens", 0)
    quarter = str(Decimal(price_in) / 4)
    parts = ((tokens_in - heard, price_in), (heard, HEARD), (written, quarter), (tokens_out, price_out))
    return usd_to_charge(*parts)


def assert_socket_charged(customer: Customer, sandbox: Sandbox) -> list[dict[str, Any]]:
    """Each response on a WebSocket is a row of the right charge, and nothing else is. Return the calls."""
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    calls = [row for row in sandbox.record() if row["method"] in ("POST", "WS")]
    assert {call["method"] for call in calls} == {"WS"}
    charged = [int(row["chargedMillicredits"]) for row in customer.usage()]
    assert sorted(charged) == sorted(charge_of(call) for call in calls)
    assert customer.balance() == START - sum(charged)
    return calls


def assert_charged(customer: Customer, sandbox: Sandbox) -> list[dict[str, Any]]:
    """Every call that the upstream served is a row of the right charge, and nothing else is. Return the calls."""
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    calls = {row["clientRequestId"]: row for row in sandbox.record() if row["method"] == "POST"}
    rows = {row["requestId"]: row for row in customer.usage()}
    assert rows.keys() == calls.keys()
    for request_id, call in calls.items():
        assert call["status"] == 200, call
        assert int(rows[request_id]["chargedMillicredits"]) == charge_of(call), call["path"]
        assert (rows[request_id]["usageSource"], rows[request_id]["outcome"]) == ("upstream", "completed")
    assert customer.balance() == START - sum(int(row["chargedMillicredits"]) for row in rows.values())
    return list(calls.values())
