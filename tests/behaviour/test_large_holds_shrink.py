"""A large hold that is mostly bytes of input shrinks to counted tokens while the answer streams."""

import threading

from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until

ENGLISH = "The quick brown fox jumps over the lazy dog while the band plays on. " * 600


def test_a_large_byte_bound_hold_shrinks_while_the_answer_streams(stack: Tollkeeper, sandbox: Sandbox) -> None:
    account = stack.account("100000")
    account.wait_balance(100_000_000)
    text = ENGLISH + sandbox_says(output_tokens=30, chunk_interval_ms=100)
    answers = []
    # gpt-5.6-sol costs 4 USD per million tokens in, 5 for cache writes: 41 kB of bytes hold about 200 credits of input
    call = threading.Thread(
        target=lambda: answers.append(account.chat(text, model="gpt-5.6-sol", max_completion_tokens=300, stream=True))
    )
    call.start()
    bytes_bound = len(text) * 5
    largest = wait_until(account.held, 5, "something is held")
    assert largest >= bytes_bound
    wait_until(lambda: 0 < account.held() < bytes_bound // 3, 5, "the hold shrinks while the answer is running")
    call.join()
    (answer,) = answers
    assert answer.status_code == 200
    (record,) = sandbox.record(clientRequestId=answer.headers["x-request-id"])
    usage = record["usage"]
    expected = usage["prompt_tokens"] * 4 + usage["completion_tokens"] * 20
    account.wait_balance(100_000_000 - expected)
    assert account.held() == 0
    (row,) = account.usage()
    assert row["chargedMillicredits"] == str(expected)
    assert stack.cli("reconcile")["ok"]
