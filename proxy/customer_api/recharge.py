"""Changing automatic recharge, from the Credits page and from the API: the same rules, whoever asks."""

from billing.ledger.audit_log import Who
from billing.payments.recharge.rows import RechargeSettings
from proxy.customer_api.money_in import MoneyIn, most_cents
from proxy.web.rejections import Rejection, invalid, unavailable


def is_offered(money: MoneyIn) -> bool:
    """Tell whether accounts can have it here."""
    return money.keys is not None and money.settings.billing.auto_recharge


async def save_recharge(money: MoneyIn, account_id: str, wish: RechargeSettings, who: Who, *, consent: bool) -> None:
    """Save what an account wishes, and that it consented.

    Switching off always works, whatever else is asked. Raises Rejection.
    """
    if not wish.enabled:
        await money.recharges.switch_off(account_id, who)
        return
    offer, most = money.offer(wish.package_code), most_cents(money.settings.purchases)
    if offer is None:
        raise invalid("There is no package of that code.", "packageCode")
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
    await money.recharges.put(account_id, wish, who)
