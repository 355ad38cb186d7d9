"""Figures under the name of what they are: what a page sells, what became of a purchase, what customers paid, what a day came to."""

import argparse
import csv
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from billing.accounting.daily_finance import Finance
from config.settings import Settings
from proxy.admin.actions import AdminActions
from proxy.cli.books import _days
from proxy.cli.context import Command, Context
from proxy.cli.jobs import _finance
from proxy.cli.stripe import _purchases
from tests.support.shop import PLUS, PRO, STARTER, Shop


async def command(shop: Shop, run: Command, **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """What a command prints: the JSON object, and the lines for people."""
    books = shop.books
    conf = msgspec.convert({"database": {"url": books.database.url.render_as_string(hide_password=False)}}, Settings)
    data, text, _ = await run(
        Context(conf, books.database, books.ledger, books.accounts, argparse.Namespace(**arguments))
    )
    return data, text.splitlines()


async def test_a_purchase_is_called_the_same_by_command_and_on_the_page(shop: Shop) -> None:
    account = await shop.books.account()
    whole, part, disputed, won, plain = [await shop.paid(account, STARTER) for _ in range(5)]
    shop.stripe.give_back(whole.payment_intent_id or "", 999)
    shop.stripe.give_back(part.payment_intent_id or "", 1)
    shop.stripe.open_dispute(disputed.payment_intent_id or "")
    closed = shop.stripe.open_dispute(won.payment_intent_id or "")
    await shop.deliver()
    shop.stripe.close_dispute(closed.id, "won")
    await shop.deliver()
    waiting = await shop.buy(account)
    data, lines = await command(shop, _purchases, account=account, limit=50)
    words = {
        whole.id: "refunded",
        part.id: "partly refunded",
        disputed.id: "disputed",
        won.id: None,
        plain.id: None,
        waiting.id: None,
    }
    assert {row["id"]: row["standing"] for row in data["data"]} == words
    assert {row["state"] for row in data["data"]} == {"credited", "open"}, "its state stays what the API calls it"
    shown = {line.split()[1]: " ".join(line.split()[2:-2]) for line in lines if " pur_" in line}
    assert shown == {name: word or ("open" if name == waiting.id else "credited") for name, word in words.items()}


async def sold(shop: Shop) -> str:
    """What an account holds that paid $2.00 of tax with one purchase, had half of another back and disputes a third; free ones taken."""
    account = await shop.books.account(50_000)
    taxed, halved, disputed = (
        await shop.paid(account, PLUS, tax=200),
        await shop.paid(account, PRO),
        await shop.paid(account, STARTER),
    )
    shop.stripe.give_back(halved.payment_intent_id or "", 5_000)
    shop.stripe.open_dispute(disputed.payment_intent_id or "")
    await shop.deliver()
    assert taxed.total_cents == 5_199
    await shop.books.correct(account, -50_000)
    return account


BOUGHT = 52_489_500 + 109_989_000 + 9_990_000
BACK = 50_000_000 + 9_999_000 * 5_000 // 9_999 + 9_990_000
PAID = 49_990_000 + 99_990_000 - 50_000_000
"""Of `sold`, in millicredits: credits bought with their bonus, those taken back, and the money for them that stayed."""


async def test_the_days_of_the_books_say_what_was_bought_and_what_was_paid(shop: Shop) -> None:
    await sold(shop)
    today = datetime.now(UTC).date()
    given = {"first": today - timedelta(days=30), "last": today + timedelta(days=1), "output": None}
    data, lines = await command(shop, _days, **given)
    assert [row["day"] for row in data["data"]] == [today.isoformat(), given["last"].isoformat()], (
        "nothing before the first booking"
    )
    first, quiet = data["data"]
    wanted = {
        "purchased": BOUGHT,
        "takenBack": BACK,
        "paidNet": PAID,
        "taxNet": 2_000_000,
        "deferred": PAID,
        "adjusted": 0,
    }
    assert {name: int(first[f"{name}Millicredits"]) for name in wanted} == wanted
    assert (quiet["paidNetMillicredits"], quiet["liabilityMillicredits"]) == ("0", str(BOUGHT - BACK))
    rows = list(csv.DictReader(lines))
    assert all(name == "day" or name.endswith(("Credits", "Usd")) for name in rows[0]), "every column has its unit"
    assert (rows[0]["purchasedCredits"], rows[0]["paidNetUsd"], rows[0]["taxNetUsd"]) == (
        "172468.500",
        "99.980000",
        "2.000000",
    )


async def test_the_days_of_finance_say_what_was_bought_and_what_was_paid(shop: Shop) -> None:
    await sold(shop)
    data, lines = await command(shop, _finance, days=9)
    (today,) = data["days"]  # nothing was booked before
    assert (today["purchasedMillicredits"], today["paidNetMillicredits"]) == (str(BOUGHT), str(PAID))
    assert len(lines) == 2
    assert lines[0].split("  ")[0] == "day"
    assert all(
        unit in lines[0]
        for unit in ("bought, credits", "paid net, $", "used, credits", "loss, credits", "owed, credits")
    )
    assert lines[1].split()[1:3] == ["172,468.5", "99.98"]
    seen = await AdminActions.overview(cast("AdminActions", SimpleNamespace(finance=Finance(shop.books.database))))
    assert [(row["purchasedCredits"], row["paidNetUsd"]) for row in seen["days"]][0] == (172_468.5, 99.98)
    day = datetime.now(UTC).date()
    assert await Finance(shop.books.database).paid(day - timedelta(days=3), day - timedelta(days=1)) == {}


async def test_days_before_the_first_booking_are_left_out_but_for_today(shop: Shop) -> None:
    data, lines = await command(shop, _finance, days=9)
    assert (len(data["days"]), len(lines)) == (1, 2)
    today = datetime.now(UTC).date()
    assert (await command(shop, _days, first=today, last=today, output=None))[0] == {"data": []}
