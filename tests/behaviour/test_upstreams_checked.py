"""Several upstreams as the operator's own checks see them: preflight asks each, and each one's costs are compared."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.servers import Tollkeeper
from tests.support.upstreams import Place, ask, places, write

pytestmark = pytest.mark.served

YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
ADMIN_KEY = "sk-admin-sandbox"


@pytest.fixture(scope="module")
def two() -> Iterator[list[Place]]:
    with places("openai", "second") as made:
        yield made


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], two: list[Place]) -> Iterator[Tollkeeper]:
    made = Tollkeeper(new_folder("checked"), {})
    for place in two:
        path = made.folder / f"{place.name}.admin"
        path.write_text(ADMIN_KEY)
        place.more["admin_key_file"] = str(path)
    write(made, two)
    yield made.start()
    made.kill()


def test_the_costs_of_each_upstream_are_compared_with_its_own_invoice(server: Tollkeeper, two: list[Place]) -> None:
    account = server.account("10000")
    assert all(ask(account, stream=False, max_tokens=300).whole for _ in range(12))
    assert {row["upstream"] for row in account.usage()} == {"openai", "second"}
    for place in two:
        place.sandbox.settings(costs_shift_days=1)
    with closing(sqlite3.connect(server.folder / "var" / "tollkeeper.db", timeout=20)) as ledger, ledger:
        ledger.execute("UPDATE usage SET created_at = created_at - 86400000")
    assert server.cli("costs") == {"ok": True, "findings": []}
    two[1].sandbox.settings(costs_skew_percent={"gpt-4o-mini": 40})
    (finding,) = server.cli("costs", code=1)["findings"]
    assert finding["subject"] == f"second {YESTERDAY} gpt-4o-mini"
    spent = sum(int(row["costMillicredits"]) for row in account.usage() if row["upstream"] == "second")
    assert int(finding["found"]) == spent, "it is compared with what that one served, and nothing else"


def test_preflight_asks_each_for_its_models_and_says_whose_key_is_refused(server: Tollkeeper, two: list[Place]) -> None:
    def rows() -> dict[str, str]:
        checks = server.cli("preflight", code=None)["checks"]
        return {row["name"]: row["state"] for row in checks if row["name"].startswith(("key ", "admin key "))}

    assert rows() == {
        "key openai": "PASS",
        "key second": "PASS",
        "admin key openai": "PASS",
        "admin key second": "PASS",
    }
    two[1].sandbox.settings(new_key="sk-canary-another")
    found = rows()
    two[1].sandbox.settings(new_key="")
    assert (found["key openai"], found["key second"]) == ("PASS", "FAIL")
