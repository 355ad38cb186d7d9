"""Many requests at once that bill what they hold, so that exactly as many are served as an account can pay for."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import web
from tests.support.servers import Account, Sandbox, Tollkeeper, sandbox_says

REQUESTS = 1_000
MAX_TOKENS = 1_000
BODY_BYTES = 600


def request_body(usage: dict[str, int], *, stream: bool = False) -> str:
    """A chat request of exactly BODY_BYTES whose answer takes 100 ms and bills `usage`."""
    body = {"model": "gpt-4o-mini", "max_tokens": MAX_TOKENS, "stream": stream}
    directive = sandbox_says(output_tokens=3, latency_ms=100, usage=usage)
    empty = json.dumps({**body, "messages": [{"role": "user", "content": directive}]})
    content = directive + "." * (BODY_BYTES - len(empty))
    return json.dumps({**body, "messages": [{"role": "user", "content": content}]})


def fire(
    server: Tollkeeper, account: Account, body: str, beside: Sequence[Tollkeeper] = ()
) -> list[tuple[int, str, dict[str, Any]]]:
    """All requests, from two client processes that start together, or one for each server where there are others `beside`."""
    places = (server, *beside) if beside else (server, server)
    client_file = str(Path(__file__).parents[1] / "behaviour" / "exact_k_client.py")
    clients = []
    for place, at in enumerate(places):
        number = (REQUESTS + place) // len(places)
        command = [sys.executable, client_file, str(at.port), account.api_key, str(number), body]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    return [
        (status, request_id, answer)
        for client in clients
        for status, request_id, answer in json.loads(client.communicate(timeout=100)[0])
    ]


def hold_of(account: Account, body: str) -> int:
    """What one such request holds, in millicredits, as a stream says up front."""
    answer = web.post(f"{account.server.v1}/chat/completions", content=body, headers=account.headers, timeout=30)
    assert answer.status_code == 200
    return round(float(answer.headers["x-credits-held"]) * 1_000)


def check_exactly(
    stack: Tollkeeper, sandbox: Sandbox, account: Account, affordable: int, beside: Sequence[Tollkeeper] = ()
) -> None:
    """Fire REQUESTS at once on a new account that gets credit for `affordable`; fail unless as many are served and charged.

    `beside`: other servers on the same stores, which get their part of them.
    """
    # The upstream bills what was held, so that K is exact however the requests overlap: 0.15 millicredits an input token,
    # 0.6 an output token, rounded up.
    rich = stack.account("1000")
    rich.wait_balance(1_000_000)
    hold = hold_of(rich, request_body({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}, stream=True))
    tokens_in = (hold - MAX_TOKENS * 6 // 10) * 100 // 15
    assert -(-(tokens_in * 15 + MAX_TOKENS * 60) // 100) == hold
    body = request_body(
        {"prompt_tokens": tokens_in, "completion_tokens": MAX_TOKENS, "total_tokens": tokens_in + MAX_TOKENS}
    )
    sandbox.clear()
    if affordable:
        account.grant(str(affordable * hold / 1_000))
        account.wait_balance(affordable * hold)
    found = fire(stack, account, body, beside)
    served = [request_id for status, request_id, _ in found if status == 200]
    refused = [answer for status, _, answer in found if status == 402]
    assert len(served) == affordable, Counter(status for status, _, _ in found)
    assert len(refused) == REQUESTS - affordable, (
        Counter(status for status, _, _ in found),
        [a for s, _, a in found if s not in (200, 402)][:1],
    )
    for answer in refused:
        # the input is counted before anyone is refused, which is never more than its bytes
        assert hold / 2 < answer["requiredCredits"] * 1_000 <= hold
        assert answer["currentCredits"] == answer["error"]["currentCredits"]
        assert answer["availableCredits"] < answer["requiredCredits"]
        assert answer["limitSource"] in (("in_flight", "balance") if affordable else ("balance",))
        assert answer["error"]["code"] == "insufficient_credits"
    rows = sandbox.record(brief=1)
    assert {row["clientRequestId"] for row in rows} == set(served)
    assert len(rows) == affordable
    account.wait_balance(0)
    assert account.held() == 0
    usage = account.usage()
    assert sorted(row["requestId"] for row in usage) == sorted(served)
    assert {row["chargedMillicredits"] for row in usage} <= {str(hold)}
    assert stack.cli("reconcile")["ok"]
