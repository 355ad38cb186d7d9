"""A second installation on the same Stripe account, that one command keeps out of every check."""

from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.bank import Bank
from tests.support.servers import Tollkeeper, wait_until

THEIRS = "pur_of_staging2"


def theirs(bank: Bank, **metadata: str) -> None:
    """What a staging server takes and gives back a dollar of, ten minutes ago."""
    web.put(f"{bank.url}/__stripe/clock", json={"offset_s": -600}, timeout=10).raise_for_status()

    def post(path: str, **form: Any) -> dict[str, Any]:
        answer = httpx.post(f"{bank.url}/v1/{path}", data=form, auth=("sk_test_sandbox", ""), timeout=20)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    named = {f"metadata[{name}]": value for name, value in {"tollkeeper_purchase": THEIRS, **metadata}.items()}
    card = {"payment_method": "pm_card_visa", "confirm": "true", "return_url": "https://app.test/"}
    intent = post("payment_intents", amount=2_500, currency="usd", **card, **named)
    post("refunds", payment_intent=intent["id"], amount=100)
    bank.drain()


@pytest.mark.parametrize("marked", [True, False])
def test_theirs_is_not_ours(bank: Bank, shop: Tollkeeper, *, marked: bool) -> None:
    shop.wait_first_sweep()
    theirs(bank, **({"tollkeeper_installation": "inst_of_staging"} if marked else {}))
    if not marked:
        assert THEIRS in shop.cli("jobs", "run", "sweep", code=3)["incomplete"]
        (found,) = shop.cli("reconcile", code=1)["findings"]
        assert found["subject"] == THEIRS
        listed = shop.cli("findings", "list", code=1)["data"]
        assert [row["subject"] for row in listed] == [THEIRS]
        assert shop.run("findings", "dismiss", THEIRS).returncode == 2, "without a reason"
        done = shop.cli("findings", "dismiss", THEIRS, "--reason", "staging's")
        assert done == {"subject": THEIRS, "findings": 1, "object": True}
        assert shop.run("findings", "dismiss", "acct_nothing", "--reason", "x").returncode == 1
    assert shop.cli("jobs", "run", "sweep") == {"ok": True, "findings": []}
    assert shop.cli("stripe", "sweep")["problems"] == []
    assert shop.cli("reconcile") == {"ok": True, "findings": []}
    assert shop.cli("findings", "list")["data"] == []
    wait_until(lambda: shop.cli("stripe", "inbox", code=None)["waiting"] == 0, 20, "nothing of theirs waits")
