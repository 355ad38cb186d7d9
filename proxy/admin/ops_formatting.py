"""Figures, times and flags as the ops page shows them. Pure."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from config.flags import FLAGS, full_name
from proxy.web.display import exact_credits
from proxy.web.query import parse_time
from proxy.web.rejections import Rejection, invalid

SPAN = re.compile(r"([1-9][0-9]{0,3})([mhd])")
SPAN_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Choice(NamedTuple):
    """Purpose of a flag, and the values it is set to by hand; none = typed."""

    words: str
    values: tuple[str, ...] = ()
    hint: str = ""


ON_OFF = ("true", "false")
CHOICES: Mapping[str, Choice] = {
    "purchase_enabled": Choice(
        "Customers can buy credits. Off: no new payment pages; payments already made are still credited.", ON_OFF
    ),
    "charging_enabled": Choice("Requests are charged. Off: see charging_disabled_mode.", ON_OFF),
    "charging_disabled_mode": Choice("While charging is off, requests are served free, or refused.", ("block", "free")),
    "rounding_mode": Choice("Charges to a thousandth of a credit, or up to whole credits.", ("exact", "ceil")),
    "model_allowlist": Choice("The models that are served, as globs.", (), 'a list such as ["gpt-6*", "gpt-image-2*"]'),
    "auto_recharge": Choice("Saved cards are charged for customers who switched that on.", ON_OFF),
    "percent": Choice("How many in a hundred accounts are metered.", (), "0 to 100"),
    "outside": Choice("Accounts that are not metered yet are served free, or refused.", ("free", "block")),
}
SWITCHED_OFF = {
    "purchase_enabled": "Purchases are switched off.",
    "charging_enabled": "Charging is switched off.",
}
DONE = {
    "create": "The account is made. It has no key yet.",
    "there": "There is an account of this external id already: this one. Nothing was changed.",
    "update": "The changes are kept.",
    "close": "The account is closed. Its keys are refused within seconds.",
    "close-in-part": "The account is closed. Not all that is left could be refunded: see its purchases at Stripe.",
    "key-there": "This form was sent before, and made its key then. Nothing was made now.",
    "rules": "This holds within seconds for every end user of whom nothing else is said.",
    "end-user": "This holds for the end user within seconds.",
    "revoke-token": "The token is revoked. It is refused everywhere within seconds.",
    "accept": "The payment is credited.",
    "dismiss": "The payment is closed. Nothing was credited for it.",
    "refund": "The money goes back. The credits follow as soon as Stripe says so.",
    "role": "The role is changed, and holds at once. Whoever has the key signs in anew.",
    "revoke-admin": "The admin key is revoked, and whoever was signed in with it is out.",
    "revoke": "The key is revoked. Programs that use it stop working within seconds.",
    "erase": "The personal data of this account are replaced. Its books stay.",
    "grant": "The credits are granted.",
    "adjust": "The adjustment is booked.",
    "block": "The account is blocked. Its requests are refused within seconds.",
    "unblock": "The account is unblocked.",
    "run-job": "The job is asked for. It starts within seconds.",
    "set": "The flag is set. Every server follows within 2 seconds.",
    "clear": "The override is cleared. The file decides again, on every server within 2 seconds.",
    "activate": "The rate card is active for requests from now on.",
    "plan": "The version is kept. Every server follows within 2 seconds.",
    "assign": "The account's prices are set, for requests that begin from now on or from then on.",
    "endpoint": "The endpoint is changed.",
    "promo": "The code is made.",
    "promo-end": "The code is ended. Nobody redeems it any more; what it gave stays.",
    "resend": "It is sent again, under the same id.",
    "replay": "The event is handled again now.",
}
"""What a page says after a form, by the word in its address."""


def credits_of(millicredits: str | int) -> str:
    """Millicredits as credits with all three places."""
    return exact_credits(int(millicredits))


def signed_credits(millicredits: str | int) -> str:
    """Millicredits as credits, with the sign of what they do to a balance."""
    return ("+" if int(millicredits) > 0 else "") + exact_credits(int(millicredits))


def number(value: float) -> str:
    """Write a figure with thousands apart; as many places as it has."""
    return f"{value:,}".replace("-", "−")


def usd(value: float, places: int = 2) -> str:
    """Dollars, the minus before the sign."""
    return f"{'−' if value < 0 else ''}${abs(value):,.{places}f}"


def cents_of(cents: int) -> str:
    """Cents as dollars: $1,234.50."""
    return f"${cents // 100:,}.{cents % 100:02}"


def stamp(iso: str | None) -> str:
    """Write a time of ours as people read it; the pages say that it is UTC."""
    return f"{iso[:10]} {iso[11:19]}" if iso else ""


def flag_views(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each flag with its words, its values as JSON, and whether it is set by hand now."""
    found = []
    for flag, row in zip(FLAGS, rows, strict=True):
        shown, file = as_json(row["value"]), as_json(row["file"])
        ruled = row["override"] is not None and not row["override"]["ended"]
        more = {
            "shown": shown,
            "file": file,
            "choice": CHOICES[flag],
            "ruled": ruled,
            "off": flag in SWITCHED_OFF and row["value"] is False,
        }
        found.append({**row, **more})
    return found


def alarms(flags: list[dict[str, Any]]) -> list[str]:
    """List what is not as usual, for the top of the overview."""
    found = []
    for flag, row in zip(FLAGS, flags, strict=True):
        override = row["override"]
        by = f" Set by {override['actor']}: {override['reason']}" if row["ruled"] else ""
        if row["off"]:
            found.append(f"{SWITCHED_OFF[flag]}{by}")
        elif row["ruled"]:
            found.append(f"{full_name(flag)} is {row['shown']}, not the file's {row['file']}.{by}")
    return found


def flag_ends(text: str, now: int) -> int | None:
    """Read an override's end (Unix milliseconds): after 15m, 4h, 7d, or at an ISO 8601 time; None for never.

    Raises Rejection.
    """
    span = SPAN.fullmatch(text)
    if span is not None:
        return now + int(span[1]) * SPAN_MS[span[2]]
    try:
        return parse_time(text or None, "expires")
    except Rejection:
        raise invalid("`until` must be 15m, 4h, 7d or so, or a UTC time such as 2026-11-23T12:00.", "expires") from None


def as_json(value: Any) -> str:
    """Write a value as JSON; nothing for nothing."""
    return "" if value is None else msgspec.json.encode(value).decode()


FILTERS = {
    "credits": credits_of,
    "signed": signed_credits,
    "number": number,
    "usd": usd,
    "cents": cents_of,
    "stamp": stamp,
}
