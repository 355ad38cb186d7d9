"""The shortest proof that everything is wired: one call, one charge, books that agree."""

from tests.support.servers import Sandbox, Tollkeeper


def test_a_call_is_served_charged_and_booked(stack: Tollkeeper, sandbox: Sandbox) -> None:
    account = stack.account("100")
    account.wait_balance(100_000)
    answer = account.chat(max_tokens=20)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    # gpt-4o-mini: 0.15 / 0.60 USD per million tokens, rounded up to the millicredit
    expected = -(-(usage["prompt_tokens"] * 15 + usage["completion_tokens"] * 60) // 100)
    assert answer.headers["x-credits-charged"] == str(expected / 1000)
    assert account.balance() == 100_000 - expected
    (row,) = account.usage()
    assert row["chargedMillicredits"] == str(expected)
    assert row["requestId"] == answer.headers["x-request-id"] == sandbox.record()[0]["clientRequestId"]
    assert stack.cli("reconcile") == {"ok": True, "findings": []}
