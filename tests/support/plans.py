"""Plans of requests at the shipped prices."""

import json
from typing import Any

import msgspec

from billing.ledger.accounts import ApiKey, KeyRules
from billing.money.pricing import PriceBook, load_catalogue
from config.settings import Billing, Holds, Settings
from proxy.gateway.endpoints import METERED, Endpoint
from proxy.gateway.plan import (
    Plan,
    make_plan,
)

PRICES = PriceBook(load_catalogue(), "1", "exact")


CHAT = METERED["POST", b"/v1/chat/completions"]


LEGACY = METERED["POST", b"/v1/completions"]


EMBEDDINGS = METERED["POST", b"/v1/embeddings"]


def key(**rules: Any) -> ApiKey:
    return ApiKey("key_1", "acct_1", "active", KeyRules(**rules), None)


def plan(
    fields: dict[str, Any] | None = None,
    section: Billing | Holds | None = None,
    endpoint: Endpoint = CHAT,
    **rules: Any,
) -> Plan:
    default = {
        CHAT: {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
        LEGACY: {"model": "gpt-3.5-turbo-instruct", "prompt": "hello"},
        EMBEDDINGS: {"model": "text-embedding-3-small", "input": "hello"},
    }[endpoint]
    body = json.dumps({**default, **(fields or {})}).encode()
    configured = Settings()
    if section is not None:
        configured = msgspec.structs.replace(configured, **{type(section).__name__.lower(): section})
    return make_plan(endpoint, endpoint.parse(body, b""), key(**rules), PRICES, configured)
