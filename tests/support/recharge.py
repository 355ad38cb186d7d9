"""An account with a saved card, what it spends, and steps of the recharge worker."""

import itertools

from billing.ledger.audit_log import Who
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry
from billing.payments.purchase import Offer
from billing.payments.recharge.rows import RechargeSettings
from billing.payments.recharge.terms import terms_of
from tests.support.shop import STARTER, Shop
from tests.support.stores import record

_charges = itertools.count()


WISH = RechargeSettings(True, 5_000_000, "starter", 2_500)


TERMS = terms_of(STARTER)


BUYER = Who("customer:test", "customer")


def offer_of(code: str) -> Offer | None:
    return STARTER if code == "starter" else None


async def account_with_card(shop: Shop, wish: RechargeSettings = WISH) -> str:
    account = await shop.books.account()
    purchase = await shop.checkout.open(account, "test", STARTER, save_method=True)
    shop.stripe.pay(purchase.session_id or "")
    await shop.deliver()
    await shop.recharges.put(account, wish, TERMS, BUYER)
    return account


async def spend(shop: Shop, account: str, leave: int) -> None:
    """Bring the balance there: down by usage, up by a grant."""
    more = leave - await shop.balance(account)
    if more > 0:
        await shop.books.correct(account, more)
    elif more < 0:
        number = next(_charges)
        await shop.books.ledger.post(
            [Entry(str(number), -more, 0, record(f"spent {number} of {account}", account, cost=1))]
        )


async def told(shop: Shop) -> list[str]:
    return [row.kind for row in await shop.notices.listing(None, 100)]


async def run(shop: Shop, times: int = 4, *, enabled: bool = True) -> None:
    """Steps of the recharge worker, each followed by what Stripe tells of it."""
    for _ in range(times):
        try:
            await shop.recharger.step(offer_of, enabled=enabled, livemode=False)
        except StoreUnavailable:
            continue
        finally:
            await shop.deliver()


def autos(shop: Shop) -> list[str]:
    """The keys of the automatic payments that Stripe was asked for, each once."""
    return list(dict.fromkeys(order.key for order in shop.stripe.orders if order.key.startswith("auto:")))


async def state_of(shop: Shop, account: str) -> str:
    row = await shop.recharges.get(account)
    assert row is not None
    return row.state
