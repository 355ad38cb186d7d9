"""Health of an upstream, as an answer of it or the lack of one tells: one reading for requests, sockets,
calls and stored objects.
"""

import re
import time
from email.utils import parsedate_to_datetime

import msgspec

from proxy.gateway.answers.redact import ResponseRedactor
from proxy.gateway.answers.upstream_errors import read_failure
from proxy.gateway.upstream.connection import Head
from proxy.gateway.upstream.member import Member

OURS = frozenset(("key", "quota", "billing", "deactivated", "organization", "region", "address"))
"""Problems of our account there: nobody is served until somebody has put them right."""
ABOUT_A_MODEL = frozenset(("access", "forbidden"))
MISSING = re.compile(rb'"(?:model_not_found|DeploymentNotFound|deployment_not_found|unsupported_model)"')
NEUTRAL = {
    "rate_limit": ("rate_limit_error", "rate_limit_exceeded", "Rate limit reached: try again later."),
    "model_missing": ("invalid_request_error", "model_not_found", "The model does not exist here."),
}
"""What is wrong with an upstream → (type, code, message) that tell no more."""
MISSING_SECONDS = 60.0
RATE_SECONDS = 2.0
"""A model rests so long after a rate limit that says no time."""
DURATION = re.compile(rb"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
SECONDS = {b"ms": 0.001, b"s": 1.0, b"m": 60.0, b"h": 3_600.0, b"d": 86_400.0, b"": 1.0}
REMAINING = (
    (b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)


def failure_in(status: int, body: bytes, redactor: ResponseRedactor) -> str:
    """Name what an error says of its upstream, of NOT_SERVED; "" where it is about the request."""
    account = read_failure(status, body, redactor.redact_identity).account
    if account in OURS:
        return account
    if status == 429:
        return "rate_limit"
    if status >= 500:
        return "status_5xx"
    if account in ABOUT_A_MODEL:
        return account
    return "model_missing" if status in (400, 404) and MISSING.search(body) else ""


def neutral_error(reason: str) -> bytes:
    """Return an error for customers in the place of one that tells which upstream it is: Azure's name, an address."""
    kind, code, message = NEUTRAL.get(reason, ("server_error", "server_error", "The server had an error. Try again."))
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def judge(member: Member, head: Head, reason: str, model: str, now: float) -> None:
    """Let an upstream, or a model of it, rest after such a failure; "" is none of its own."""
    circuit = member.circuit
    if reason in OURS:
        circuit.failed(reason, now, at_once=True)
    elif reason == "rate_limit":
        circuit.rest(model, now, retry_after(head) or rest_of_limits(head) or RATE_SECONDS)
    elif reason == "status_5xx":
        if seconds := retry_after(head):
            circuit.rest(model, now, seconds)
        circuit.failed(reason, now)
    elif reason:
        circuit.rest(model, now, MISSING_SECONDS)
    else:
        circuit.served()


def retry_after(head: Head) -> float:
    """Seconds that an error asks to wait, said as a number or as a date; 0 where it says none that can be read."""
    if milliseconds := _number(head.get(b"retry-after-ms")):
        return milliseconds / 1_000
    value = head.get(b"retry-after")
    return _number(value) or _until(value)


def _number(value: bytes) -> float:
    try:
        return max(0.0, float(value))
    except ValueError:
        return 0.0


def _until(value: bytes) -> float:
    """Seconds until a date as HTTP writes it."""
    try:
        return max(0.0, parsedate_to_datetime(value.decode("latin-1")).timestamp() - time.time())
    except ValueError:
        return 0.0


def rest_of_limits(head: Head) -> float:
    """Seconds until a limit that is used up is reset; 0 while nothing is used up."""
    return max((_duration(head.get(reset)) for left, reset in REMAINING if head.get(left) == b"0"), default=0.0)


def _duration(value: bytes) -> float:
    return sum(float(number) * SECONDS[unit] for number, unit in DURATION.findall(value))
