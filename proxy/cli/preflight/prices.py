"""Preflight's checks of prices: packages on sale, their margin, the rate card."""

from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from fractions import Fraction

from billing.accounting.margins import selling_below
from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError, display_credits, package_credits
from billing.money.errors import BillingError
from billing.money.pricing import PriceBook, load_catalogue
from billing.storage.database import now_ms
from config.settings import Settings
from proxy.admin.plans.listing import warnings as plan_warnings
from proxy.cli.preflight.site import Check, Site, list_some
from proxy.customer_api.money_in import offers_of
from proxy.gateway.admission import ENDING_DAYS, has_ended, models_ending, models_on_sale

CARD, ENDS = "rate card", "model ends"
OLD_CARD_DAYS = 90


def package_checks(settings: Settings) -> list[Check]:
    """Check that there is something to buy, at prices that Stripe can take: which packages is the operator's to say."""
    if not settings.packages:
        state = settings.billing.purchase_enabled
        fix = "write [[packages]] in proxy.toml, or set billing.purchase_enabled = false"
        return [Check("prices", "packages", "FAIL" if state else "WARN", "there is nothing to buy", fix)]
    shown = []
    for package in settings.packages:
        if (Fraction(package.usd) * 100).denominator != 1:
            return [
                Check(
                    "prices", "packages", "FAIL", f"{package.code} costs ${package.usd}", "Stripe sells in whole cents"
                )
            ]
        sold_credits = display_credits(sum(package_credits(package.usd, package.bonus_percent)))
        shown.append(f"{package.code} ${package.usd} → {sold_credits:,} credits")
    return [Check("prices", "packages", "PASS", "; ".join(shown))]


def margin_checks(settings: Settings, book: PriceBook) -> list[Check]:
    """Check what each package leaves in the worst case, by the prices in force: the card's, or billing.markup."""
    if not settings.packages:
        return []
    target = settings.jobs.margin_target_percent
    words, below = selling_below(book, offers_of(settings), target)
    if below:
        fix = (
            f"the card's `prices`, or billing.markup, must pay for bonuses and fees: the target is {target} % "
            "(jobs.margin_target_percent)"
        )
        return [Check("prices", "margin", "WARN", words, fix)]
    return [Check("prices", "margin", "PASS", words)]


async def plan_checks(site: Site, book: PriceBook) -> list[Check]:
    """Check that no price plan that applies, or will, sells below what it costs. Raises StoreUnavailable."""
    plans, offers = PricePlans(site.database), offers_of(site.settings)
    warned = await plan_warnings(plans, book, offers, now_ms())
    if warned:
        fix = "`tollkeeper plan add` keeps another version with a higher markup, if that is not meant"
        return [Check("prices", "price plans", "WARN", "; ".join(warned), fix)]
    count = len({row.plan_id for row in await plans.versions()})
    return [Check("prices", "price plans", "PASS", f"none of {count} sells below what it costs")] if count else []


async def rate_checks(site: Site) -> tuple[list[Check], PriceBook | None]:
    """Check that the active rate card is whole and dated. Raises StoreUnavailable."""
    cards, billing = RateCards(site.database), site.settings.billing
    active = await cards.active_id()
    if active is None:
        fix = "`tollkeeper migrate` installs the shipped card; or `tollkeeper rates import` and `activate`"
        return [Check("prices", CARD, "FAIL", "no rate card is active", fix)], None
    try:
        book = PriceBook(await cards.get(active), billing.markup, billing.rounding_mode)
    except (BillingError, MoneyError) as error:
        return [Check("prices", CARD, "FAIL", f"{active}: {error}", "import and activate a correct card")], None
    age = (datetime.now(UTC).date() - date.fromisoformat(book.effective_from)).days
    found = f"{active}, dated {book.effective_from}, {len(book.names())} models"
    if age < 0:
        return [
            Check("prices", CARD, "FAIL", f"{found}: a date to come", "activate it from that date on, not now")
        ], book
    shipped = load_catalogue()
    if book.effective_from < shipped["effectiveFrom"]:
        fix = f"read what {shipped['catalogueId']}, which this version ships, would change: `tollkeeper rates refresh`"
        return [Check("prices", CARD, "WARN", f"{found}: older than the shipped one", fix)], book
    if age > OLD_CARD_DAYS:
        fix = "compare it with OpenAI's price list, and import what changed: `tollkeeper rates refresh` drafts a card"
        return [Check("prices", CARD, "WARN", f"{found}: {age} days old", fix)], book
    return [Check("prices", CARD, "PASS", found)], book


def end_checks(settings: Settings, prices: PriceBook, today: date) -> list[Check]:
    """Check that what is on sale goes on, and that the allowlist names nothing that is gone."""
    billing = settings.billing
    ended = [glob for glob in billing.model_allowlist if _names_only_ended(glob, settings, prices, today)]
    if ended:
        fix = (
            "name their successors in billing.model_allowlist; what OpenAI still serves to you goes in "
            "billing.extended_models"
        )
        return [Check("prices", ENDS, "FAIL", f"allowed, and ended: {list_some(ended)}", fix)]
    ending = [
        f"{model.name} on {last}" + (f" (then {model.successor})" if model.successor else "")
        for model, last in models_ending(prices, billing, today)
    ]
    if ending:
        fix = "tell your customers, and move what you run yourself; each is refused from the day after"
        return [Check("prices", ENDS, "WARN", f"end within {ENDING_DAYS} days: {list_some(ending)}", fix)]
    sold = len(models_on_sale(prices, billing, today))
    return [Check("prices", ENDS, "PASS", f"none of {sold} models ends within {ENDING_DAYS} days")]


def _names_only_ended(glob: str, settings: Settings, prices: PriceBook, today: date) -> bool:
    named = [model for name in prices.names() if fnmatchcase(name, glob) and (model := prices.find(name)) is not None]
    return bool(named) and all(has_ended(model.name, model, settings.billing, today) for model in named)
