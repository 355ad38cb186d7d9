"""Errors of the upstream that are about the operator's own account, and the words for customers instead. Pure.

By its code or type where it has one; else by how its message begins, because what a message quotes of a request stands
further on. docs/openai.md#errors-and-retries has the table.
"""

import re
from collections.abc import Mapping
from typing import Any

from proxy.web.rejections import Rejection

UNAUTHORIZED, PAYMENT_REQUIRED, FORBIDDEN, TOO_MANY = 401, 402, 403, 429

ACCOUNT_CODES = {
    "invalid_api_key": "key",
    "invalid_authentication": "key",
    "api_key_expired": "key",
    "insufficient_quota": "quota",
    "quota_exceeded": "quota",
    "insufficient_credits": "quota",
    "billing_hard_limit_reached": "billing",
    "billing_soft_limit_reached": "billing",
    "billing_limit_reached": "billing",
    "billing_limit_exceeded": "billing",
    "billing_not_active": "billing",
    "billing_error": "billing",
    "payment_required": "billing",
    "spend_limit_exceeded": "billing",
    "spend_limit_reached": "billing",
    "project_spend_limit_exceeded": "billing",
    "organization_spend_limit_exceeded": "billing",
    "project_budget_exceeded": "billing",
    "account_deactivated": "deactivated",
    "account_suspended": "deactivated",
    "account_terminated": "deactivated",
    "access_terminated": "deactivated",
    "organization_deactivated": "deactivated",
    "organization_suspended": "deactivated",
    "user_deactivated": "deactivated",
    "invalid_organization": "organization",
    "mismatched_organization": "organization",
    "organization_not_found": "organization",
    "organization_restricted": "organization",
    "organization_limit_exceeded": "organization",
    "no_organization": "organization",
    "invalid_project": "organization",
    "mismatched_project": "organization",
    "project_not_found": "organization",
    "project_archived": "organization",
    "project_limit_exceeded": "organization",
    "unsupported_country_region_territory": "region",
    "ip_not_authorized": "address",
    "ip_not_allowed": "address",
    "insufficient_permissions": "access",
    "missing_scope": "access",
    "organization_not_verified": "access",
    "organization_must_be_verified": "access",
}
"""An error's code, or its type → what is wrong with our account."""
YOU_USED = r"you(?:'ve| have)? (?:exceeded|reached|hit|used up) "
OURS = r"(?:(?:your|this|the|the openai) )?"
ACCOUNT_WORDS = tuple(
    (reason, re.compile(words, re.IGNORECASE))
    for reason, words in (
        ("key", r"(?:incorrect|invalid|expired) api key|you didn't provide an api key"),
        ("quota", YOU_USED + r"(?:your|the)\b(?!.{0,60}\brate\b).{0,60}\b(?:quota|limit|budget|credits)\b"),
        (
            "quota",
            OURS + r"(?:credit )?balance is too low|(?:insufficient|not enough) (?:quota|credits?|balance|funds)\b",
        ),
        ("billing", OURS + r"(?:account's |organization's |project's )?billing\b.{0,30}\b(?:limit|not active)"),
        (
            "billing",
            OURS + r"(?:account|organization|project)\b.{0,80}\b(?:spend|spending|usage|budget|billing|quota)\b",
        ),
        ("billing", OURS + r"account is not active"),
        (
            "deactivated",
            OURS + r"(?:account|organization|access|project)\b.{0,80}\b"
            r"(?:deactivated|suspended|terminated|disabled|closed)\b",
        ),
        ("access", OURS + r"organization must be verified|you have insufficient permissions\b"),
        ("access", OURS + r"(?:project|organization)\b.{0,80}\bdoes not have access to\b"),
        ("organization", r"(?:no such|invalid|mismatched|unknown) (?:organization|project)\b"),
        ("organization", r"you must be a member of an organization|openai-(?:organization|project) header"),
        (
            "organization",
            OURS + r"(?:organization|project)\b.{0,80}\b(?:archived|not found|does not exist|limit)\b",
        ),
        ("region", r".{0,40}\bcountry, region,? or territory\b.{0,12}\bnot supported"),
        ("address", r".{0,60}\bip(?: address)?\b.{0,60}\bnot (?:authorized|allowed|permitted)"),
    )
)
"""How the message of an error begins that says so in words only: what it quotes of a request stands further on."""
RATE_CODES = ("rate_limit_exceeded",)
QUOTA_REASONS = ("quota", "billing")
PASSED_REASONS = ("forbidden", "rate_limit")
"""What only the operator is told: the client gets these as they are."""

KEY_REFUSED = "The upstream did not accept this service's own credentials; your API key is fine. Contact your provider."
QUOTA_USED_UP = "This service's own upstream quota is used up; your credits are fine. Contact your provider."
ACCOUNT_REFUSED = (
    "The upstream does not serve this service's own account for this request; your API key and credits are fine. "
    "Contact your provider."
)


def account_problem(status: int, error: Mapping[str, Any]) -> str:
    """Name what is wrong with our own account by an error's status, code, type or message; "" for nothing.

    `status` 0: an error inside an answer.
    """
    named = (text_in(error, "code"), text_in(error, "type"))
    for name in named:
        if reason := ACCOUNT_CODES.get((name or "").lower(), ""):
            return reason
    message = (text_in(error, "message") or "").lstrip()
    if reason := ACCOUNT_CODES.get(message, ""):
        return reason
    for reason, words in ACCOUNT_WORDS:
        if words.match(message):
            return reason
    if status == UNAUTHORIZED or "authentication_error" in named:
        return "key"
    if status == PAYMENT_REQUIRED:
        return "quota"
    if status == FORBIDDEN and not error.get("param"):
        return "forbidden"
    return "rate_limit" if status == TOO_MANY or named[0] in RATE_CODES else ""


def account_rejection(reason: str, status: int, param: str | None = None) -> Rejection:
    """Make the customer's answer to a problem of our account: its status stays, its words are ours.

    A 402 becomes OpenAI's own 429: it would be taken for one of ours, about the customer's credits.
    """
    status = TOO_MANY if status == PAYMENT_REQUIRED else status
    code, message = "upstream_account", ACCOUNT_REFUSED
    if reason in QUOTA_REASONS:
        code, message = "insufficient_quota", QUOTA_USED_UP
    elif reason == "key" or status == UNAUTHORIZED:
        code, message = "upstream_authentication_failed", KEY_REFUSED
    return Rejection(status, code, message, kind="upstream_error", param=param, final=True)


def text_in(error: Mapping[str, Any], name: str) -> str | None:
    """Text under a name of an error; None when it is none."""
    value = error.get(name)
    return value if isinstance(value, str) else None
