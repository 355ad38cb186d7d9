"""Stripe's own pages, for whoever sends a customer there: to pay, to see a receipt, to look after saved cards."""

import logging

from billing.ledger.accounts import Accounts
from billing.ledger.audit_log import Who
from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.purchase import Offer
from billing.payments.purchase_store import Purchase
from proxy.customer_api.money_in import MoneyIn
from proxy.web.rejections import not_found, unavailable

log = logging.getLogger("tollkeeper.stripe")

PURCHASES_OFF = "Purchases are switched off for the moment. Credits you have bought stay yours; try again later."


async def open_payment_page(
    money: MoneyIn, accounts: Accounts, account_id: str, offer: Offer, *, save_method: bool
) -> Purchase:
    """Open a page to pay an offer; the purchase has its `url`. Stripe must be configured.

    Raises TooManyCheckouts, NotYet, StripeRefused, StoreUnavailable, AccountNotFound.
    """
    parts = await money.parts()
    account = await accounts.get(account_id)
    try:
        return await parts.checkout.open(account_id, account.name, offer, save_method=save_method)
    except (StripeRefused, StoreUnavailable) as failed:
        _log_failure("payment page", account_id, failed)
        raise


async def open_saved_cards(money: MoneyIn, account_id: str, customer_id: str, return_url: str) -> str:
    """Open the page of a Stripe customer's saved cards; return its URL. Raises StripeRefused."""
    try:
        return await (await money.parts()).gateway.portal_url(customer_id, return_url)
    except (StripeRefused, StoreUnavailable) as failed:
        _log_failure("page of saved cards", account_id, failed)
        raise


async def remove_card(money: MoneyIn, account_id: str, who: Who) -> None:
    """Have Stripe forget an account's saved card, and switch automatic recharge off, which could charge nothing.

    Raises Rejection, StripeRefused, StoreUnavailable.
    """
    buyer = await money.customers.find(account_id)
    if buyer is None or not buyer.payment_method_id or money.keys is None:
        raise not_found("No card is saved.", "no_saved_payment_method")
    await money.recharges.switch_off(account_id, who)
    try:
        await (await money.parts()).gateway.detach_method(buyer.payment_method_id)
    except (StripeRefused, StoreUnavailable) as failed:
        _log_failure("removal of the saved card", account_id, failed)
        raise
    await money.customers.remove_method(account_id, buyer.payment_method_id, who)


def no_page(failed: StripeRefused | StoreUnavailable) -> str:
    """Return what a buyer is told of a page of Stripe's that does not open. The cause is for the log."""
    if isinstance(failed, StripeRefused):
        return "The payment provider does not open this page now. Nothing was charged."
    if failed.store == "stripe":
        return "The payment page cannot be opened right now. Nothing was charged; try again in a moment."
    return "Payments cannot be started right now. Nothing was charged; try again in a moment."


def _log_failure(page: str, account_id: str, failed: StripeRefused | StoreUnavailable) -> None:
    log.error("no %s for %s: %s", page, account_id, failed)


async def invoice_url(money: MoneyIn, purchase: Purchase) -> str:
    """URL of Stripe's numbered invoice, asked for anew, because links age. Raises Rejection."""
    url = ""
    if purchase.invoice_id and money.keys is not None:
        try:
            invoice = await (await money.parts()).gateway.invoice(purchase.invoice_id)
        except (StoreUnavailable, StripeRefused) as error:
            _log_failure("invoice", purchase.account_id, error)
            raise unavailable(no_page(error), "invoice_failed") from None
        url = (invoice.hosted_invoice_url or invoice.invoice_pdf or "") if invoice is not None else ""
    if not url.startswith(("https://", "http://")):
        raise not_found("There is no invoice for this purchase.", "invoice_not_found")
    return url


async def receipt_url(money: MoneyIn, purchase: Purchase) -> str:
    """URL of Stripe's receipt: asked for anew, because links age and show what was refunded since.

    Raises Rejection.
    """
    url = purchase.receipt_url
    if purchase.stripe_charge_id and money.keys is not None:
        try:
            charge = await (await money.parts()).gateway.charge(purchase.stripe_charge_id)
            url = (charge.receipt_url if charge is not None else None) or url
        except (StoreUnavailable, StripeRefused) as error:
            log.warning("the receipt of %s is the one we kept: %s", purchase.id, error)
    if not url.startswith(("https://", "http://")):
        raise not_found("There is no receipt for this purchase yet.", "receipt_not_found")
    return url
