"""Webhook signatures: Stripe's scheme, checked on what comes in and made for what we send out. Pure.

    Stripe-Signature: t=<Unix seconds>,v1=<hex HMAC-SHA256 of "t.body">,v1=...

stripe-python checks the same, except that it takes any time in the future, decodes the body first and lets a secret of
"" pass in version 15 (docs/adr/0023). A test holds this and the library to the same signatures.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence

MAX_HEADER_BYTES = 2_048
TOLERANCE_SECONDS = 300
"""How far a webhook's time may be off, either way: what Stripe's own libraries allow."""
TIMESTAMP = re.compile(r"[0-9]{1,12}")


class BadSignature(ValueError):
    """The header does not prove that the body comes from whom it should, now."""


class WrongTime(BadSignature):
    """One of the secrets signed it, and not now: it is an old one that somebody sent again, or a clock is wrong.

    `seconds_ago` by our clock; below zero, it is ahead of it.
    """

    def __init__(self, seconds_ago: int) -> None:
        """Keep how far off it is."""
        super().__init__("it was signed too long ago, or in the future")
        self.seconds_ago = seconds_ago


def sign(body: bytes, secret: str, at: int) -> str:
    """Return the header for a body sent at `at` (Unix seconds)."""
    return sign_with_all(body, [secret], at)


def sign_with_all(body: bytes, secrets: Sequence[str], at: int) -> str:
    """Return the header for a body, signed with each of these secrets: whoever has one of them can check it."""
    return ",".join([f"t={at}", *(f"v1={_digest(body, secret, str(at))}" for secret in secrets)])


def verify(
    body: bytes, header: str, secrets: Sequence[str], now: int, tolerance_seconds: int = TOLERANCE_SECONDS
) -> None:
    """Raise BadSignature unless a v1 signature is by one of the secrets; WrongTime where only its time is beyond the
    tolerance, either way.
    """
    if not secrets or not all(secrets):
        raise BadSignature("there is no secret to check with")
    if len(header) > MAX_HEADER_BYTES:
        raise BadSignature("the signature header is too long")
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1"]
    if len(times) != 1 or not TIMESTAMP.fullmatch(times[0]) or not given:
        raise BadSignature("the signature header is not t=...,v1=...")
    # every pair is compared, so that the time taken says nothing of which secret it was
    expected = [_digest(body, secret, times[0]).encode() for secret in secrets]
    matches = [hmac.compare_digest(wanted, found.encode("utf-8", "replace")) for wanted in expected for found in given]
    if not any(matches):
        raise BadSignature("no signature matches")
    if abs(now - int(times[0])) > tolerance_seconds:
        raise WrongTime(now - int(times[0]))


def _digest(body: bytes, secret: str, at: str) -> str:
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
