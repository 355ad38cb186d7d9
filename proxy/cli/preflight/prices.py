"""Preflight's checks of prices: packages on sale, their margin, the rate card."""

from datetime import UTC, date, datetime
from fractions import Fraction

from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError, display_credits, package_credits
from billing.money.errors import BillingError
from billing.money.pricing import PriceBook
from config.settings import Settings
from proxy.cli.preflight.site import Check, Site

RUNBOOK_PACKAGES = {"starter": ("9.99", "0"), "plus": ("49.99", "5"), "pro": ("99.99", "10")}
OLD_CARD_DAYS = 90


def package_checks(settings: Settings) -> list[Check]:
    """Compare what is on sale with the runbook's three packages."""
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
    sold = {package.code: (Fraction(package.usd), Fraction(package.bonus_percent)) for package in settings.packages}
    planned = {code: (Fraction(usd), Fraction(bonus)) for code, (usd, bonus) in RUNBOOK_PACKAGES.items()}
    if sold != planned:
        fix = (
            "the runbook sells starter $9.99, plus $49.99 + 5 %, pro $99.99 + 10 %: "
            "change [[packages]] unless this is meant"
        )
        return [Check("prices", "packages", "WARN", "; ".join(shown), fix), _margin_check(settings)]
    return [Check("prices", "packages", "PASS", "; ".join(shown)), _margin_check(settings)]


def _margin_check(settings: Settings) -> Check:
    """Check what is left of the cheapest credits when they are used: a package's bonus comes on top of the markup over
    OpenAI's prices.
    """
    cheapest = max(settings.packages, key=lambda package: Fraction(package.bonus_percent))
    margin = 100 - (100 + Fraction(cheapest.bonus_percent)) / Fraction(settings.billing.markup)
    found = f"{cheapest.code} leaves {float(margin):.1f} % at markup {settings.billing.markup}, before Stripe's fees"
    if margin < settings.jobs.margin_target_percent:
        target = settings.jobs.margin_target_percent
        fix = f"raise billing.markup or lower the bonus: the target is {target} % (jobs.margin_target_percent)"
        return Check("prices", "margin", "WARN", found, fix)
    return Check("prices", "margin", "PASS", found)


async def rate_checks(site: Site) -> tuple[list[Check], PriceBook | None]:
    """Check that the active rate card is whole and dated. Raises StoreUnavailable."""
    cards, billing = RateCards(site.database), site.settings.billing
    active = await cards.active_id()
    if active is None:
        fix = "`tollkeeper migrate` installs the shipped card; or `tollkeeper rates import` and `activate`"
        return [Check("prices", "rate card", "FAIL", "no rate card is active", fix)], None
    try:
        book = PriceBook(await cards.get(active), billing.markup, billing.rounding_mode)
    except (BillingError, MoneyError) as error:
        return [Check("prices", "rate card", "FAIL", f"{active}: {error}", "import and activate a correct card")], None
    age = (datetime.now(UTC).date() - date.fromisoformat(book.effective_from)).days
    found = f"{active}, dated {book.effective_from}, {len(book.names())} models"
    if age < 0:
        return [
            Check("prices", "rate card", "FAIL", f"{found}: a date to come", "activate it from that date on, not now")
        ], book
    if age > OLD_CARD_DAYS:
        fix = "compare it with OpenAI's price list (`tollkeeper rates diff`), and import what changed"
        return [Check("prices", "rate card", "WARN", f"{found}: {age} days old", fix)], book
    return [Check("prices", "rate card", "PASS", found)], book
