"""kill -9 of whoever meters a call: nobody talks on unmetered, and nothing stays held."""

import pytest

from tests.support.servers import RedisServer, Sandbox, Serve, sandbox_says, wait_until
from tests.support.voice import RESPOND, call_of, calls, play, says, wait_answers, wait_ended

START = 100_000_000


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_a_call_whose_worker_was_killed_is_hung_up(
    kind: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "2"}
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment |= {"TOLLKEEPER_REDIS__URL": redis.url, "TOLLKEEPER_LISTEN__WORKERS": "2"}
    server = make_tollkeeper(**environment).start()
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    call_id = call_of(account)
    play(sandbox, call_id, says("hello"), RESPOND)
    wait_answers(sandbox, call_id, 1)
    wait_until(account.usage, 20, "the first answer is charged")
    play(sandbox, call_id, says(sandbox_says(output_tokens=3_000, chunk_interval_ms=10)), RESPOND)
    wait_until(lambda: account.held() > 0, 10, "an answer is held for")
    server.kill()
    assert calls(sandbox)[call_id]["running"], "OpenAI does not know that we died"
    server.start()
    wait_ended(sandbox, call_id, 20)
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    assert account.balance() > 0
    assert server.cli("reconcile") == {"ok": True, "findings": []}
