"""The counting process of a service killed, stopped and gone: no charge changes, no request ends of it."""

import psutil

from tests.support.processes import children, frozen
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Sandbox, Tollkeeper, wait_until
from tests.support.wire import events_of

TOKENS = 40
PROMPT = "The quick brown fox jumps over the lazy dog. 漢字 \U0001f433 " * 200
RICH = 1_000_000_000


def counter_of(server: Tollkeeper) -> psutil.Process:
    def look() -> psutil.Process | None:
        return next((child for child in children(server) if child.name() == "tk-counter"), None)

    found: psutil.Process = wait_until(look, 10, "there is a counter")
    return found


def leave_midway(customer: Customer) -> None:
    """Leave after three tokens: the prompt and they are charged by what is counted, which is what the upstream counted."""
    with customer.stream(customer.body({"silent": {"after_chunks": 4}, "output_tokens": TOKENS}, PROMPT)) as wire:
        assert len(events_of(wire.read_events(4))) == 4
        request_id = wire.request_id
    served, record = customer.finished(request_id), customer.generation(request_id)
    assert served["usage"]["prompt_tokens"] > 2_000
    assert (record["usageSource"], record["outcome"]) == ("counted", "client_gone")
    assert (record["inputTokens"], record["outputTokens"]) == (served["usage"]["prompt_tokens"], 3)
    due = usd_to_charge((served["usage"]["prompt_tokens"], "0.15"), (3, "0.6"))
    assert int(record["chargedMillicredits"]) == due


def loaded(process: psutil.Process) -> bool:
    """Whether a vocabulary is in its own memory: 45 MB, where a process that loaded none has some 10."""
    return int(process.memory_full_info().uss) > 35_000_000


def test_a_count_is_right_with_the_counter_killed_stopped_and_back(on_redis: Tollkeeper, sandbox: Sandbox) -> None:
    account = on_redis.account(str(RICH // 1_000))
    account.wait_balance(RICH)
    customer = Customer(on_redis, account.account_id, account.api_key, sandbox)
    workers = [child for child in children(on_redis) if child.name().startswith("tk-worker")]
    before = [worker.memory_full_info().uss for worker in workers]
    leave_midway(customer)
    assert loaded(counter_of(on_redis))
    counter_of(on_redis).kill()
    leave_midway(customer)
    assert loaded(counter_of(on_redis)), "it was started again, and asked"
    grown = [worker.memory_full_info().uss - had for worker, had in zip(workers, before, strict=True)]
    assert max(grown) < 25_000_000, "no worker has loaded a vocabulary"
    with frozen([counter_of(on_redis)]):
        leave_midway(customer)
    assert on_redis.log().count("tk-counter does not answer") >= 1
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")
    assert on_redis.stop() == 0
