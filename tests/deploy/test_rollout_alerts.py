"""The runbook's own rollout, 5 -> 25 -> 100 with those outside served free, judged by the shipped alert rules: nothing
fires, so that the gate to the next share can be believed; and a price that loses money is heard all the same.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bank import SECRET, Bank, bank_environment, bought, open_bank
from tests.support.customers import Customer, new_customer
from tests.support.figures import metric
from tests.support.prometheus import FASTER, Prometheus
from tests.support.servers import ROOT, Tollkeeper, wait_until

HELD_SECONDS = {"5": 30 * 60, "25": 60 * 60, "100": 30 * 60}
"""How long the runbook stays at a share; durations of the rules and these are shortened alike."""


@pytest.fixture
def launched(make_tollkeeper: Callable[..., Tollkeeper]) -> Iterator[tuple[Tollkeeper, Bank]]:
    """As the runbook begins: a share of 0, those outside free, Stripe reached, its jobs run."""
    with open_bank() as bank:
        environment = bank_environment(bank) | {
            "TOLLKEEPER_ROLLOUT__PERCENT": "0",
            "TOLLKEEPER_ROLLOUT__OUTSIDE": "free",
            "TOLLKEEPER_ADVANCED__FINANCE_SECONDS": "1",
            "TOLLKEEPER_ADVANCED__SWEEP_MINUTES": "1",
        }
        server = make_tollkeeper(**environment)
        sells_at(server, "1.2")
        server.start()
        bank.control("endpoints", url=f"{server.url}/webhooks/stripe", secret=SECRET)
        yield server, bank


@pytest.mark.timeout(400)
def test_nothing_fires_at_any_share(launched: tuple[Tollkeeper, Bank], folder: Path) -> None:
    server, bank = launched
    steps = re.findall(
        r"^tollkeeper flags set rollout\.percent (\d+)", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE
    )
    assert steps == list(HELD_SECONDS)
    customers = [new_customer(server, 0) for _ in range(10)]
    for customer in customers[1:]:
        buy(bank, customer)
    prometheus = Prometheus(folder / "prometheus", [f"127.0.0.1:{server.port}"]).start()
    fired: dict[str, set[str]] = {}
    entered = without = 0
    try:
        for percent in steps:
            said = set_share(server, percent)
            entered, without = entered + said["newlyMetered"], without + said["newlyMeteredWithoutCredits"]
            if said["newlyMeteredWithoutCredits"]:
                buy(bank, customers[0])
            wait_until(
                lambda share=percent: metric(server, "tollkeeper_rollout_percent") == float(share), 10, "in force"
            )
            until = time.monotonic() + HELD_SECONDS[percent] / FASTER
            fired[percent] = set()
            while time.monotonic() < until:
                for customer in customers:
                    ask(customer)
                fired[percent] |= prometheus.firing()
        assert fired == {"5": set(), "25": set(), "100": set()}
        assert (entered, without) == (len(customers), 1), "it was said who would come in, and who without credits"
        assert server.run("jobs", "list").returncode == 0
        server.cli("drain")
        (today,) = server.cli("finance", "--days", "1")["days"]
        assert int(today["givenAwayMillicredits"]) > 0, "those outside cost something, and it is said"
        assert int(today["marginMillicredits"]) > 0
        assert server.run("reconcile").returncode == 0
        sells_at(server, "0.5")

        def negative() -> bool:
            for customer in customers:
                ask(customer)
            return "NegativeMargin" in prometheus.firing()

        wait_until(negative, 60, "a price below cost is heard all the same")
    finally:
        prometheus.kill()


def set_share(server: Tollkeeper, percent: str) -> Any:
    """Set the share as the runbook does; a disk that all tests share may keep the ledger locked for a while."""
    words = ("flags", "set", "rollout.percent", percent, "--reason", "the runbook", "--json")
    done = wait_until(lambda: (run := server.run(*words)).returncode == 0 and run, 60, "the share is set")
    return json.loads(done.stdout)


def sells_at(server: Tollkeeper, markup: str) -> None:
    """Write the price into the file that is served by."""
    (server.folder / "proxy.toml").write_text(f'[billing]\nmarkup = "{markup}"\n')


def buy(bank: Bank, customer: Customer) -> None:
    """Buy a package, credited and spendable."""
    bought(bank, customer)
    customer.wait_balance(9_990_000)


def ask(customer: Customer) -> None:
    """Make a call."""
    answer = customer.chat(model="gpt-4o-mini", max_tokens=20)
    assert answer.status_code == 200, (customer.account_id, answer.text)
