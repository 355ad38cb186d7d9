"""Figures under the name of what they are: what a page sells, what became of a purchase, what customers paid, what a day came to."""

import argparse
from typing import Any

from billing.purchases import offer
from config.settings import Settings
from proxy.cli_context import Command, Context
from proxy.cli_money import _purchases
from tests.money.shop import PRO, STARTER, Shop

PLUS = offer("plus", "49.99", "5")
"""52,489.5 credits: not a whole number of them."""


async def command(shop: Shop, run: Command, **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """What a command prints: the JSON object, and the lines for people."""
    books = shop.books
    data, text, _ = await run(Context(Settings(), books.database, books.ledger, books.accounts, argparse.Namespace(**arguments)))
    return data, text.splitlines()


async def test_the_payment_page_sells_what_is_credited_to_the_last_credit(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.buy(account, PLUS)
    await shop.buy(account, PRO)
    assert [order.title for order in shop.stripe.orders] == ["52,489.5 credits", "109,989 credits"]


async def test_a_purchase_is_called_the_same_by_command_and_on_the_page(shop: Shop) -> None:
    account = await shop.books.account()
    whole, part, disputed, won, plain = [await shop.paid(account, STARTER) for _ in range(5)]
    shop.stripe.refund_payment(whole.payment_intent_id or "", 999)
    shop.stripe.refund_payment(part.payment_intent_id or "", 1)
    shop.stripe.open_dispute(disputed.payment_intent_id or "")
    closed = shop.stripe.open_dispute(won.payment_intent_id or "")
    await shop.deliver()
    shop.stripe.close_dispute(closed.id, "won")
    await shop.deliver()
    waiting = await shop.buy(account)
    data, lines = await command(shop, _purchases, account=account, limit=50)
    words = {whole.id: "refunded", part.id: "partly refunded", disputed.id: "disputed", won.id: None, plain.id: None, waiting.id: None}
    assert {row["id"]: row["standing"] for row in data["data"]} == words
    assert {row["state"] for row in data["data"]} == {"credited", "open"}, "its state stays what the API calls it"
    shown = {line.split()[1]: " ".join(line.split()[2:-2]) for line in lines if " pur_" in line}
    assert shown == {name: word or ("open" if name == waiting.id else "credited") for name, word in words.items()}
