"""Hold / charge for plain English chat with an explicit max: bounded by bytes, and counted where money is short.

The texts, lengths and the answer of 80 of 100 tokens are fixed; the usage is the simulator's own.
"""

from pathlib import Path

import httpx

from tests.support.servers import Tollkeeper, sandbox_says, start_sandbox

TEXT = (
    "The toll keeper lifts the bar when the coin has rung on the plate, and writes the name of the carter and the "
    "weight of his load in the long book, so that in the evening the sum of the coins is the sum of the lines. "
)
OUTPUT, CAP = 80, 100


def measure(folder: Path) -> dict[str, float]:
    """Hold / charge for a rich account (bounded by bytes) and a poor one (counted); one request of about 1 kB each."""
    folder.mkdir(parents=True)
    sandbox = start_sandbox("--output-tokens", str(OUTPUT))
    server = Tollkeeper(folder, {"TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url})
    try:
        server.start()
        found = {}
        for name, funds in (("bounded by bytes", "1000000"), ("counted", "0.18")):
            account = server.account(funds)
            account.wait_balance(round(float(funds) * 1_000))
            body = {
                "model": "gpt-4o-mini",
                "max_tokens": CAP,
                "messages": [{"role": "user", "content": TEXT * 5 + sandbox_says(latency_ms=1)}],
            }
            answer = httpx.post(f"{server.v1}/chat/completions", json=body, headers=account.headers, timeout=20)
            assert answer.status_code == 200, answer.text
            (row,) = account.usage()
            record = httpx.get(
                f"{server.url}/api/billing/generations/{row['requestId']}", headers=account.headers, timeout=10
            ).json()
            found[name] = int(record["heldMillicredits"]) / int(record["chargedMillicredits"])
        return found
    finally:
        server.kill()
        sandbox.process.kill()
