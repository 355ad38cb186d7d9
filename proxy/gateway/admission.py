"""Admission: kill switches and rollout for one account, a key's limits, the models on sale, and the words customers
are told. Pure.
"""

from collections.abc import Iterable
from datetime import date, timedelta

from billing.ledger.accounts import ApiKey, KeyRules
from billing.money.catalogue.models import Model
from billing.money.holds import Budget, KeyLimits, Refused
from billing.money.model_rates import fits_any
from billing.money.pricing import PriceBook
from billing.money.spend_periods import named_period_end_ms, period_name, period_of
from config.rollout import is_in
from config.settings import Billing, Limits, Settings
from proxy.gateway.endpoints import METERED, SERVED
from proxy.web.rejections import KeyLimit, LimitOwner, Rejection, forbidden, too_many, unavailable
from proxy.web.times import iso_time

PAUSED = "Charging is paused, so requests are not served right now. Try again later."
NOT_YET = "This service is not open to your account yet. Ask your provider."
FREE = "Usage is free of charge right now: nothing is taken from your balance."
NO_LIMITS = KeyLimits()
UNLIMITED = (None, None, None, None)
ENDING_DAYS = 30
"""Days before its end from which a model is reported."""
NO_PURCHASES = "Buying credits is paused right now. Your credits keep working."


def is_free(settings: Settings, account_id: str) -> bool:
    """Tell whether this account's requests are recorded and not charged."""
    return not settings.billing.charging_enabled or not is_in(settings.rollout, account_id)


def admit(settings: Settings, account_id: str, overloaded: str) -> bool:
    """Admit a request; True when it is recorded and not charged. `overloaded`: why nobody's is served, or "".

    Raises Rejection when this account's requests are not served right now.
    """
    billing, rollout = settings.billing, settings.rollout
    if not billing.charging_enabled and billing.charging_disabled_mode == "block":
        raise unavailable(PAUSED, "charging_paused", 60_000)
    inside = is_in(rollout, account_id)
    if rollout.outside == "block" and not inside:
        raise forbidden(NOT_YET, "not_in_rollout")
    if overloaded:
        raise unavailable(overloaded, "journal_full", 5_000)
    return not billing.charging_enabled or not inside


def banners(settings: Settings, account_id: str) -> list[str]:
    """Notices for this account's owner, in plain words."""
    billing, rollout, found = settings.billing, settings.rollout, []
    if not billing.charging_enabled:
        found.append(PAUSED if billing.charging_disabled_mode == "block" else FREE)
    elif not is_in(rollout, account_id):
        found.append(NOT_YET if rollout.outside == "block" else FREE)
    if not billing.purchase_enabled:
        found.append(NO_PURCHASES)
    return found


def either(own: int | None, default: int) -> int:
    """Choose a key's own limit, else the operator's."""
    return default if own is None else own


def rates_of(rules: KeyRules, defaults: Limits) -> tuple[int, int]:
    """Choose the (requests, tokens) a minute that a key may make; 0 = unlimited."""
    return (
        either(rules.requests_per_minute, defaults.requests_per_minute),
        either(rules.tokens_per_minute, defaults.tokens_per_minute),
    )


def key_limits(key: ApiKey, defaults: Limits, now_ms: int, models: Iterable[str]) -> KeyLimits:
    """Limits of a key and of whom it is used for, the operator's defaults where it names none.

    Of the budgets those that count these models.
    """
    rules, user = key.rules, key.user
    own = (rules.spend_limit, rules.requests_per_minute, rules.tokens_per_minute, rules.concurrency)
    if (
        own == UNLIMITED
        and not rules.budgets
        and (user is None or not user.budgets)
        and not (defaults.requests_per_minute or defaults.tokens_per_minute or defaults.concurrency)
    ):
        return NO_LIMITS
    budgets = tuple(
        Budget(own.scope(key.key_id), period_name(own.period, now_ms), own.limit, own.models)
        for own in rules.all_budgets
        if own.models is None or any(fits_any(model, own.models) for model in models)
    )
    if user is not None:
        scope = f"{key.account_id}:{user.id}"
        budgets += tuple(
            Budget(own.scope(scope), period_name(own.period, now_ms), own.limit, own.models, user.name)
            for own in user.budgets
            if own.models is None or any(fits_any(model, own.models) for model in models)
        )
    return KeyLimits(
        requests_per_minute=either(rules.requests_per_minute, defaults.requests_per_minute),
        tokens_per_minute=either(rules.tokens_per_minute, defaults.tokens_per_minute),
        concurrency=either(rules.concurrency, defaults.concurrency),
        budgets=budgets,
        passing=key.token is not None,
    )


def tightest_budget(limits: KeyLimits, result: Refused) -> KeyLimit:
    """Return the budget that refused, what is left of it, and when it starts anew."""
    budget = limits.budgets[result.budget]
    ends = named_period_end_ms(budget.period)
    resets_at = iso_time(ends) if ends is not None else None
    whose: LimitOwner = "end_user" if budget.end_user else "token" if limits.passing else "key"
    return KeyLimit(result.key_available, resets_at, budget.limit, period_of(budget.period), whose)


def over_limit(result: Refused) -> Rejection:
    """429 of one of the key's rates."""
    if result.source == "concurrency":
        return too_many(
            "Too many requests of this key are in flight. Wait for one to finish.",
            "concurrency_limit_exceeded",
            result.retry_after_ms,
        )
    unit = "requests" if result.source == "requests_per_minute" else "tokens"
    again = f"Try again in {result.retry_after_ms / 1000:.1f}s."
    message = f"Rate limit reached for {unit} per minute of this API key. {again}"
    return too_many(message, "rate_limit_exceeded", result.retry_after_ms)


def may_use_model(model: str, allowlist: tuple[str, ...], key_models: tuple[str, ...] | None) -> bool:
    """Tell whether a model's name passes the operator's globs and the key's own."""
    return fits_any(model, allowlist) and (key_models is None or fits_any(model, key_models))


def has_ended(name: str, model: Model, billing: Billing, today: date) -> bool:
    """Tell whether a model that is asked for by that name is gone, and not served to this operator for longer."""
    return model.ends is not None and today > model.ends and not fits_any(name, billing.extended_models)


def models_on_sale(
    prices: PriceBook, billing: Billing, today: date, key_models: tuple[str, ...] | None = None
) -> list[Model]:
    """Models that may be used: priced at an endpoint that is served, allowed, and not ended; by name."""
    found = (prices.find(name) for name in prices.names())
    return [model for model in found if model is not None and is_on_sale(model.name, model, billing, today, key_models)]


def is_on_sale(
    name: str, model: Model, billing: Billing, today: date, key_models: tuple[str, ...] | None = None
) -> bool:
    """Tell whether a model may be used by that name at any endpoint."""
    return (
        bool(model.endpoints & SERVED)
        and may_use_model(name, billing.model_allowlist, key_models)
        and not has_ended(name, model, billing, today)
    )


def models_ending(prices: PriceBook, billing: Billing, today: date) -> list[tuple[Model, date]]:
    """Models on sale whose last day is near, soonest first, with that day."""
    last = today + timedelta(ENDING_DAYS)
    found = [
        (model, model.ends)
        for model in models_on_sale(prices, billing, today)
        if model.ends is not None and model.ends <= last and not fits_any(model.name, billing.extended_models)
    ]
    return sorted(found, key=lambda one: (one[1], one[0].name))


def successor(
    model: Model,
    endpoint: str,
    prices: PriceBook,
    billing: Billing,
    today: date,
    key_models: tuple[str, ...] | None = None,
) -> Model | None:
    """Model to use instead of one that ended: the first of its line that is on sale at the endpoint, if any."""
    passed: set[str] = set()
    found: Model | None = model
    while found is not None and found.name not in passed:
        passed.add(found.name)
        found = prices.find(found.successor) if found.successor else None
        if found is None or endpoint not in found.endpoints:
            continue
        if is_on_sale(found.name, found, billing, today, key_models):
            return found
    return None


def refuse_ended(name: str, model: Model, instead: Model | None) -> Rejection:
    """Refuse a model that OpenAI serves no longer."""
    use = f" Use {instead.name!r} instead." if instead is not None else ""
    return Rejection(
        404, "model_not_found", f"The model {name!r} ended on {model.ends} and is no longer served.{use}", param="model"
    )


def refuse_endpoint(model: str, endpoint: str, others: Iterable[str]) -> Rejection:
    """Refuse a model that may be used, but not here."""
    served = sorted(other for other in others if ("POST", other.encode()) in METERED)
    instead = f" Use {' or '.join(served)}." if served else ""
    return Rejection(
        404, "model_not_found", f"The model {model!r} does not work at {endpoint}.{instead}", param="model"
    )
