"""Credits that nobody paid for are not served as if somebody had: the sandbox's, and those of Stripe's test mode."""

from pathlib import Path

import pytest

from billing.ledger.audit_log import Who
from billing.ledger.dismissals import TEST_MONEY, Dismissals
from config.errors import ConfigError
from proxy.cli import quickstart
from proxy.server.startup_checks import check_test_money
from tests.support.money_api import settings
from tests.support.shop import Shop

LIVE, TEST = settings(stripe={"livemode": True}), settings()


def test_make_run_with_a_real_key_serves_no_credits_of_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("TOLLKEEPER_LISTEN__PORT", "0")
    quickstart.check_no_sandbox_money()
    quickstart.STRIPE_STATE.parent.mkdir()
    quickstart.STRIPE_STATE.write_text("{}")
    assert quickstart.main() == 2
    said = capsys.readouterr().err
    assert "bought at the made-up Stripe" in said
    assert "mv var var-sandbox" in said


async def test_live_payments_do_not_begin_on_a_ledger_with_test_money(shop: Shop) -> None:
    await check_test_money(LIVE, shop.books.database)
    await shop.buy(await shop.books.account())  # never paid
    await check_test_money(LIVE, shop.books.database)
    await shop.paid(await shop.books.account())
    await check_test_money(TEST, shop.books.database)
    with pytest.raises(ConfigError, match="1 purchases of Stripe's test mode"):
        await check_test_money(LIVE, shop.books.database)
    await Dismissals(shop.books.database).dismiss_object(TEST_MONEY, "taken back", Who("owner", "owner"))
    await check_test_money(LIVE, shop.books.database)
