"""Plans of requests at the shipped prices."""

import json
from datetime import date
from typing import Any

import msgspec

from billing.ledger.accounts import ApiKey, KeyRules
from billing.money.catalogue.models import Model
from billing.money.pricing import PriceBook, load_catalogue
from config.settings import Billing, Holds, Settings
from proxy.gateway.endpoints import METERED, Endpoint
from proxy.gateway.plan import (
    Plan,
    make_plan,
    refuse_model,
)

PRICES = PriceBook(load_catalogue(), "1", "exact")
TODAY = date(2026, 7, 1)
"""Before any model of the shipped catalogue ends: what is planned in tests does not depend on when they run."""


def ending(**ends: str | None) -> PriceBook:
    """The shipped prices with other ends of models: ending(gpt_4o="2026-07-01"); `every` is of all others."""
    shipped = load_catalogue()
    named = {name.replace("-", "_").replace(".", "_"): name for name in shipped["models"]}
    if "every" in ends:
        last = ends.pop("every")
        shipped["models"] = {name: {**row, "ends": last} for name, row in shipped["models"].items()}
    for name, last in ends.items():
        shipped["models"][named[name]]["ends"] = last
    return PriceBook(shipped, "1", "exact")


CHAT = METERED["POST", b"/v1/chat/completions"]


LEGACY = METERED["POST", b"/v1/completions"]


EMBEDDINGS = METERED["POST", b"/v1/embeddings"]


def key(**rules: Any) -> ApiKey:
    return ApiKey("key_1", "acct_1", "active", KeyRules(**rules), None)


def sold(name: str, endpoint: str = "") -> Model:
    """The model of a name, if it works at an endpoint; raises Rejection."""
    model = PRICES.find(name)
    if model is None or (endpoint and endpoint not in model.endpoints):
        raise refuse_model(name)
    return model


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
    return make_plan(endpoint, endpoint.parse(body, b""), key(**rules), PRICES, configured, today=TODAY)
