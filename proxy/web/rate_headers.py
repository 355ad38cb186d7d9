"""A key's own limits in OpenAI's header names, for clients that pace themselves by them."""

import time
from collections import OrderedDict

from billing.money.holds import MINUTE_US, NO_LEADS, Leads

KNOWN_KEYS = 10_000
MINUTE_MS, SECOND_MS = 60_000, 1_000

Headers = list[tuple[bytes, bytes]]


class KnownRates:
    """Keys' minute buckets as the balance store told them last: answers that held for nothing say them as well.

    A bucket fills by itself, so what was told is carried on to now; requests that other processes served since are not
    in it.
    """

    __slots__ = ("_told",)

    def __init__(self) -> None:
        """Nothing is known: every bucket is taken for full."""
        self._told: OrderedDict[str, tuple[Leads, float]] = OrderedDict()

    def remember(self, key_id: str, leads: Leads) -> None:
        """Take what the store just told."""
        self._told[key_id] = (leads, time.monotonic())
        self._told.move_to_end(key_id)
        if len(self._told) > KNOWN_KEYS:
            self._told.popitem(last=False)

    def give_back(self, key_id: str, tokens_us: int) -> None:
        """Take that the store gave so much of the tokens' minute back."""
        leads, told_at = self._told.get(key_id, (NO_LEADS, 0.0))
        if leads != NO_LEADS:
            self._told[key_id] = (leads._replace(tokens_us=leads.tokens_us - tokens_us), told_at)

    def now(self, key_id: str) -> Leads:
        """How far a key's buckets are ahead of now."""
        leads, told_at = self._told.get(key_id, (NO_LEADS, 0.0))
        if leads == NO_LEADS:
            return leads
        passed = round((time.monotonic() - told_at) * 1_000_000)
        return Leads(max(0, leads.requests_us - passed), max(0, leads.tokens_us - passed))


def rate_headers(requests: int, tokens: int, leads: Leads) -> Headers:
    """`x-ratelimit-*` of a key with so many requests and tokens a minute (0 = no such limit)."""
    found: Headers = []
    # as the buckets count: a request costs a whole number of microseconds
    each = max(1, MINUTE_US // requests) if requests else 1
    for name, limit, lead, left in (
        (b"requests", requests, leads.requests_us, (MINUTE_US - leads.requests_us) // each),
        (b"tokens", tokens, leads.tokens_us, (MINUTE_US - leads.tokens_us) * tokens // MINUTE_US),
    ):
        if limit:
            found.append((b"x-ratelimit-limit-" + name, b"%d" % limit))
            found.append((b"x-ratelimit-remaining-" + name, b"%d" % min(limit, max(0, left))))
            found.append((b"x-ratelimit-reset-" + name, span(-(-lead // 1_000)).encode()))
    return found


def span(milliseconds: int) -> str:
    """Length of time as OpenAI writes it: 20ms, 1s, 8.64s, 6m0s."""
    if 0 < milliseconds < SECOND_MS:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, MINUTE_MS)
    seconds, part = divmod(rest, SECOND_MS)
    fraction = f".{part:03}".rstrip("0") if part else ""
    return (f"{minutes}m" if minutes else "") + f"{seconds}{fraction}s"
