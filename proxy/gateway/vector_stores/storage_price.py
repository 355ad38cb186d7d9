"""The price of a day of storage, and whether an account can pay for one before it stores more."""

from billing.ledger.accounts import ApiKey
from billing.money.catalogue.models import STORAGE
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.model_rates import STORAGE_PRICE
from billing.money.pricing import Charge, PriceBook
from billing.money.usage import Usage
from config.app import ways_home
from proxy.gateway.services import Services
from proxy.web.rejections import forbidden, insufficient_credits, unavailable


def is_priced(prices: PriceBook) -> bool:
    """Tell whether storage has a price: without one there are no vector stores."""
    return prices.prices_call(STORAGE_PRICE)


def stored_usage(size_bytes: int) -> Usage:
    """Usage of so many bytes for a day."""
    return Usage(calls=((STORAGE_PRICE, size_bytes),))


def day_charge(prices: PriceBook, size_bytes: int) -> Charge:
    """Price so many bytes for a day, rounded up once. Raises UnpricedModel."""
    return prices.price(prices.service(STORAGE), "default", stored_usage(size_bytes))


def refuse_unpriced(prices: PriceBook) -> None:
    """Raise Rejection where storage has no price."""
    if not is_priced(prices):
        raise forbidden(
            "Vector stores are not offered here: the operator's rate card has no price for storage.",
            "storage_has_no_price",
        )


async def check_funds(services: Services, key: ApiKey, size_bytes: int) -> None:
    """Refuse to store more where what is available does not cover a day of all of it. Raises Rejection (402, 503)."""
    needed = max(1, day_charge(services.prices_of(key.home_id), size_bytes).amount)
    try:
        read = await services.balances.read(key.account_id)
    except (StoreUnavailable, AccountNotFound):
        message = "Your balance cannot be read right now, so nothing was stored. Try again shortly."
        raise unavailable(message, "store_unavailable") from None
    if read.balance - read.held < needed:
        source = "in_flight" if read.balance >= needed else "balance"
        top_up = services.absolute(services.settings.purchases.top_up_url)
        retry = 1_000 if source == "in_flight" else None
        services.metrics.count(services.metrics.insufficient, source)
        ways = ways_home(services.settings.app)
        raise insufficient_credits(source, needed, read.balance, read.held, None, top_up, retry, ways=ways)
