"""Admission: the kill switches and the rollout for one account, and the words customers are told. Pure."""

from config.rollout import is_in
from config.settings import Settings
from proxy.web.rejections import forbidden, unavailable

PAUSED = "Charging is paused, so requests are not served right now. Try again later."
NOT_YET = "This service is not open to your account yet. Ask your provider."
FREE = "Usage is free of charge right now: nothing is taken from your balance."
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
    if rollout.outside == "block" and not is_in(rollout, account_id):
        raise forbidden(NOT_YET, "not_in_rollout")
    if overloaded:
        raise unavailable(overloaded, "journal_full", 5_000)
    return is_free(settings, account_id)


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
