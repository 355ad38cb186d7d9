"""Changing automatic recharge, from the Credits page and from the API: the same rules, whoever asks."""

from billing.ledger.audit_log import Who
from billing.payments.recharge.rows import RechargeSettings
from billing.payments.recharge.terms import Terms, standing, terms_of
from billing.storage.database import now_ms
from proxy.customer_api.money_in import MoneyIn, most_cents
from proxy.web.rejections import Rejection, invalid, unavailable


def is_offered(money: MoneyIn) -> bool:
    """Tell whether accounts can have it here."""
    return money.keys is not None and money.settings.billing.auto_recharge


async def recharge_standing(money: MoneyIn, account_id: str) -> dict[str, object]:
    """Standing of an account's automatic recharge: what is set, what was agreed, and what is in the way."""
    row, buyer = await money.recharges.get(account_id), await money.customers.find(account_id)
    saved = buyer is not None and bool(buyer.payment_method_id)
    offer = money.offer(row.package_code) if row is not None else None
    now = standing(row, offer, now_ms(), has_card=saved)
    agreed = row.agreed_millicredits if row is not None else None
    return {
        "available": is_offered(money),
        "hasSavedPaymentMethod": saved,
        "savedPaymentMethod": {"brand": buyer.method_brand, "last4": buyer.method_last4} if buyer and saved else None,
        "enabled": row is not None and row.enabled,
        "thresholdMillicredits": str(row.threshold_millicredits) if row else None,
        "packageCode": row.package_code if row else None,
        "monthlyCeilingCents": row.monthly_ceiling_cents if row else None,
        "agreedPriceCents": row.agreed_price_cents if row else None,
        "agreedMillicredits": None if agreed is None else str(agreed),
        "taxOnTop": money.settings.stripe.automatic_tax,
        "state": now.state,
        "message": now.message,
        "actionUrl": now.action_url or None,
    }


async def save_recharge(
    money: MoneyIn, account_id: str, wish: RechargeSettings, who: Who, *, consent: bool, shown: Terms | None = None
) -> None:
    """Save what an account wishes, and that it consented to the price and the credits of the package.

    `shown`: what the page said when they did; a package that has changed since is asked about again. Switching off
    always works, whatever else is asked. Raises Rejection.
    """
    if not wish.enabled:
        await money.recharges.switch_off(account_id, who)
        return
    offer, most = money.offer(wish.package_code), most_cents(money.settings.purchases)
    if offer is None:
        raise invalid("There is no package of that code.", "packageCode")
    if shown is not None and shown != terms_of(offer):
        text = f"The package has changed since: it is {terms_of(offer).words} now. Look at it again, and confirm it."
        raise Rejection(409, "price_changed", text, param="packageCode")
    if not 0 < wish.threshold <= offer.paid + offer.bonus:
        raise invalid("The threshold must be above 0 and at most what the package brings.", "thresholdMillicredits")
    if wish.monthly_ceiling_cents < offer.price_cents:
        raise invalid("The monthly ceiling is below the price of one package.", "monthlyCeilingCents")
    if wish.monthly_ceiling_cents > most:
        raise invalid(f"The monthly ceiling can be ${most // 100:,}.{most % 100:02} at most.", "monthlyCeilingCents")
    if not is_offered(money):
        raise unavailable("Automatic recharge is switched off here.", "auto_recharge_disabled", 60_000)
    if not consent:
        raise invalid("Charging a saved card while you are away needs your consent.", "consent")
    buyer = await money.customers.find(account_id)
    if buyer is None or not buyer.payment_method_id:
        raise Rejection(
            409, "no_saved_payment_method", "There is no saved card. Buy a package once and let the card be saved."
        )
    await money.recharges.put(account_id, wish, terms_of(offer), who)
