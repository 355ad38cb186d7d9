"""From a parsed request to what is held for it: model, tier, bounds, price. Sans I/O.

Everything here decides about money and knows nothing of HTTP servers, sockets or stores.
"""

import fnmatch
import re
from collections.abc import Iterable
from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.pricing import Bounds, Charge, Model, PriceBook
from config.settings import Billing, Holds, Settings
from proxy.gateway.bodies.inventory import TOOLS, named
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.endpoints import METERED, Endpoint
from proxy.web.rejections import Rejection, forbidden, invalid

# what a client may ask for → the tier we price ("" = the operator's own)
ASKED_TIERS = {
    None: "",
    "auto": "",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
    "ultrafast": "ultrafast",
}
MODEL_NAME = re.compile(r"[!-~]{1,120}")
"""Characters that may be stored and sent: no model's name has any other."""
IMAGES, RESPONSES = "/v1/images/generations", "/v1/responses"
HOSTED_TOOLS = named(TOOLS, "hosted")
SEARCH_TOKENS = TOOLS["web_search"].tokens
USUAL_TOKENS, USUAL_REASONED_TOKENS = 4_096, 8_192
"""Most output tokens of most answers, without and with reasoning."""
CALL_PRICES = {
    "web_search": "web_search",
    "web_search_2025_08_26": "web_search",
    "web_search_preview": "",
    "web_search_preview_2025_03_11": "",
    "file_search": "file_search",
    "code_interpreter": "code_interpreter_1g",
}
"""Hosted tool → the name of its price per call; "" = by its model, others cost tokens only."""


class Plan(NamedTuple):
    """One request, ready to be held for. `cap` is output tokens per choice; `ceiling` the most it can cost."""

    endpoint: Endpoint
    parsed: Parsed
    model: Model
    tier: str
    cap: int
    cap_is_ours: bool
    searches: int
    bounds: Bounds
    ceiling: Charge
    tools: "Tools"
    context: int | None = 0
    text: int = 0
    """Tokens of the text that is written there and of what searches may bring: bounded by bytes, or counted."""
    input_is_counted: bool = False
    keeps: bool = False
    """True when the objects it makes stay in the upstream account, where their owner must be known (I8)."""

    @property
    def is_read_on(self) -> bool:
        """True when a part of the answer cannot tell what it costs: left by its client, it is read on to its usage.

        Unseen reasoning, sound and pictures; input that cannot be counted here (files, audio, objects of unknown size);
        hosted tools, whose calls make the model read again.
        """
        uncounted = self.parsed.unbounded or self.parsed.audio_tokens or self.context is None or self.tools.calls
        return self.model.reasoning or self.endpoint.drains or bool(uncounted)

    def cap_headers(self) -> list[tuple[bytes, bytes]]:
        """Tell a client that named no maximum that the balance, or the operator, set one."""
        most = self.model.max_output_tokens
        if not self.cap_is_ours or not self.parsed.cap_field or (most is not None and self.cap >= most):
            return []
        return [(b"x-credits-output-cap", b"%d" % self.cap)]


class Tools(NamedTuple):
    """Hosted tools in use: how many calls at most, what each may add to the model's input, and by what names they are
    priced.
    """

    calls: int = 0
    call_tokens: int = 0
    search: str = "web_search"
    dearest: str = ""
    image: Model | None = None


NO_TOOLS = Tools()


def make_plan(
    endpoint: Endpoint, parsed: Parsed, key: ApiKey, prices: PriceBook, settings: Settings, context: int | None = 0
) -> Plan:
    """Check model, tier, tools and fields; bound by bytes; price the worst case. Raises Rejection.

    `context`: tokens of stored objects that the request refers to; None = unknown.
    """
    billing = settings.billing
    model = sold_model(parsed.model, endpoint.priced_as or endpoint.name, key, prices, billing)
    if parsed.store and not billing.allow_store:
        raise invalid(
            "`store` must be false here: what is stored would be kept in a shared account.",
            "store",
            "unsupported_parameter",
        )
    if parsed.background and not billing.allow_background:
        raise invalid(
            "`background` is not enabled here: leave it out, and stream the response.",
            "background",
            "unsupported_parameter",
        )
    tier = _tier(endpoint, parsed, model, billing)
    tools = _tools(parsed, model, key, prices, settings) if parsed.tools or parsed.image_tool else NO_TOOLS
    searches = _searches(parsed, model)
    cap, cap_is_ours = _output_cap(parsed, model, settings.holds)
    text = parsed.input_bytes_bound + searches * SEARCH_TOKENS
    tokens_in = _tokens_in(parsed, model, text, context, tools, cap)
    bounds = bounds_of(parsed, tokens_in, cap, searches, tools)
    ceiling = prices.ceiling(model, tier, bounds)
    keeps = endpoint.stores and billing.allow_store and parsed.store is not False
    return Plan(
        endpoint, parsed, model, tier, cap, cap_is_ours, searches, bounds, ceiling, tools, context, text, keeps=keeps
    )


def sold_model(name: str, endpoint: str, key: ApiKey, prices: PriceBook, billing: Billing) -> Model:
    """Model, if it is allowed, priced, and works at this endpoint. Raises Rejection."""
    plain = MODEL_NAME.fullmatch(name) is not None
    model = prices.find(name) if plain and may_use_model(name, billing.model_allowlist, key.rules.models) else None
    if model is None:
        raise refuse_model(name)
    if endpoint not in model.endpoints:
        raise _wrong_endpoint(name, endpoint, model.endpoints)
    return model


def _wrong_endpoint(model: str, endpoint: str, others: Iterable[str]) -> Rejection:
    """Model that may be used, but not here."""
    served = sorted(other for other in others if ("POST", other.encode()) in METERED)
    instead = f" Use {' or '.join(served)}." if served else ""
    return Rejection(
        404, "model_not_found", f"The model {model!r} does not work at {endpoint}.{instead}", param="model"
    )


def with_counted_input(plan: Plan, tokens: int, prices: PriceBook) -> Plan:
    """Plan anew with the text counted instead of bounded by bytes."""
    text = min(plan.text, tokens + plan.searches * SEARCH_TOKENS)
    return with_cap(plan._replace(text=text, input_is_counted=True), plan.cap, prices)


def with_cap(plan: Plan, cap: int, prices: PriceBook) -> Plan:
    """Plan anew with another output cap a choice, and all that grows with it: tools read their turns again."""
    tokens_in = _tokens_in(plan.parsed, plan.model, plan.text, plan.context, plan.tools, cap)
    bounds = bounds_of(plan.parsed, tokens_in, cap, plan.searches, plan.tools)
    return plan._replace(cap=cap, bounds=bounds, ceiling=prices.ceiling(plan.model, plan.tier, bounds))


def affordable_cap(plan: Plan, budget: int, prices: PriceBook) -> int:
    """Find the highest output cap a choice, not above the plan's, that `budget` millicredits pay for; 0 for none."""
    low, high = 0, plan.cap
    if not plan.model.tier(plan.tier).short.output:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if with_cap(plan, middle, prices).ceiling.amount <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def clamped(plan: Plan, budget: int, minimum: int, prices: PriceBook) -> Plan | None:
    """Plan anew with our own output cap lowered to what `budget` millicredits pay for; None below `minimum`."""
    if not plan.cap_is_ours:
        return None
    cap = affordable_cap(plan, budget, prices)
    return None if cap < min(minimum, plan.cap) else with_cap(plan, cap, prices)


def smallest(plan: Plan, minimum: int, prices: PriceBook) -> Plan:
    """Least that could be held for this request: what a 402 says is required."""
    return with_cap(plan, min(plan.cap, minimum), prices) if plan.cap_is_ours else plan


def usual(plan: Plan, prices: PriceBook) -> Plan:
    """Plan with what such a model usually answers with at most: our cap leaves room for others down to that."""
    tokens = USUAL_REASONED_TOKENS if plan.model.reasoning else USUAL_TOKENS
    return with_cap(plan, min(plan.cap, tokens), prices)


def _tier(endpoint: Endpoint, parsed: Parsed, model: Model, billing: Billing) -> str:
    """Tier to send and to price: the client's, else the operator's. Raises Rejection."""
    if not endpoint.tiered:
        return "default"
    asked = ASKED_TIERS.get(parsed.asked_tier)
    if asked is None:
        raise invalid(f"`service_tier` {parsed.asked_tier!r} is not offered here.", "service_tier")
    if not asked:
        return billing.service_tier if billing.service_tier in model.tiers else "default"
    if asked not in billing.allowed_service_tiers:
        raise forbidden(
            f"`service_tier` {parsed.asked_tier!r} is not enabled here.", "service_tier_not_allowed", "service_tier"
        )
    if asked not in model.tiers:
        raise invalid(
            f"The model {parsed.model!r} is not offered in service tier {parsed.asked_tier!r}.", "service_tier"
        )
    return asked


def _tokens_in(parsed: Parsed, model: Model, text: int, context: int | None, tools: Tools, cap: int) -> int:
    """Input tokens at most, where `text` is what is written there and what searches may bring.

    Every call of a hosted tool makes the model read all of it again, and what came before the call.
    """
    window = model.context_window
    once = window if context is None and window is not None else input_bound(parsed, text + (context or 0), window)
    if not tools.calls or not parsed.tools:
        return once
    more = tools.call_tokens + cap * parsed.choices
    turns = (once + turn * more for turn in range(tools.calls + 1))
    return sum(turn if window is None else min(turn, window) for turn in turns)


def bounds_of(parsed: Parsed, tokens_in: int, cap: int, searches: int, tools: Tools = NO_TOOLS) -> Bounds:
    """Bounds that the hold is priced by; `cap` is output tokens per choice."""
    more: tuple[tuple[Model, str, Bounds], ...] = ()
    if tools.image is not None and parsed.image_tool is not None:
        each = parsed.image_tool
        more = ((tools.image, "default", Bounds(each.input_tokens * tools.calls, each.output_tokens * tools.calls)),)
    return Bounds(
        input_tokens=tokens_in,
        output_tokens=cap * parsed.choices + parsed.extra_output,
        audio_input_tokens=min(parsed.audio_tokens, tokens_in),
        audio_output=parsed.audio_output,
        cache_write_12h=parsed.cache_write_12h or parsed.keeps_cache,
        web_searches=searches,
        milliseconds=parsed.milliseconds,
        characters=parsed.characters,
        calls=((tools.dearest, tools.calls),) if tools.dearest else (),
        more=more,
    )


def _tools(parsed: Parsed, model: Model, key: ApiKey, prices: PriceBook, settings: Settings) -> Tools:
    """Check the hosted tools against the configuration and the prices. Raises Rejection."""
    hosted = parsed.tools & HOSTED_TOOLS
    for tool in sorted(hosted):
        if tool not in settings.billing.allowed_tools:
            raise forbidden(f"The tool {tool!r} is not enabled here.", "tool_not_allowed", "tools")
    searches = any(CALL_PRICES.get(tool) == "web_search" for tool in hosted)
    search = "web_search" if model.reasoning or searches else "web_search_preview_non_reasoning"
    names = {CALL_PRICES[tool] or search for tool in hosted if tool in CALL_PRICES}
    for name in names:
        if not prices.prices_call(name):
            raise invalid(f"The tool has no price here ({name}).", "tools", "unsupported_tool")
    calls = 0
    if hosted or parsed.image_tool:
        calls = parsed.max_calls or settings.holds.max_tool_calls
    image = None
    if parsed.image_tool is not None:
        image = sold_model(parsed.image_tool.model, IMAGES if hosted else RESPONSES, key, prices, settings.billing)
    added = max((TOOLS[tool].tokens for tool in hosted), default=0)
    return Tools(calls, added, search, max(names, key=prices.call_price, default=""), image)


def _searches(parsed: Parsed, model: Model) -> int:
    """Web searches that will be billed beside the tokens (their fee is not in usage)."""
    if not (model.searches_each_call or parsed.web_search):
        return 0
    if model.tiers["default"].short.web_search == 0:
        raise invalid(
            f"Web search has no price on the model {parsed.model!r}.", "web_search_options", "unsupported_parameter"
        )
    return max(1, parsed.choices)


def _output_cap(parsed: Parsed, model: Model, holds: Holds) -> tuple[int, bool]:
    """(output tokens per choice, whether we chose it). Raises Rejection."""
    most = model.max_output_tokens
    if parsed.explicit_cap is not None:
        if most is not None and parsed.explicit_cap > most:
            raise invalid(
                f"The output maximum is too large: {parsed.explicit_cap}. "
                f"{parsed.model!r} supports at most {most} output tokens.",
                parsed.cap_field or "max_tokens",
            )
        return parsed.explicit_cap, False
    if parsed.cap_field is None:
        bounds = [bound for bound in (most, parsed.output_bound) if bound is not None]
        return min(bounds, default=0), False
    chosen = holds.default_max_output_tokens or most
    if chosen is None:
        raise invalid(
            f"The model {parsed.model!r} has no known output maximum: send `{parsed.cap_field}`.", parsed.cap_field
        )
    return (min(chosen, most) if most is not None else chosen), True


def input_bound(parsed: Parsed, text_bound: int, window: int | None) -> int:
    """Input tokens at most: text, plus images and audio; what cannot be bounded is the window.

    Never more than it, per input.
    """
    if parsed.unbounded:
        if window is None:
            raise invalid(
                f"The model {parsed.model!r} has no known context window, so this input cannot be priced.", "messages"
            )
        return window
    bound = text_bound + parsed.image_tokens + parsed.audio_tokens
    return bound if window is None else min(bound, window * parsed.inputs)


def may_use_model(model: str, allowlist: tuple[str, ...], key_models: tuple[str, ...] | None) -> bool:
    """Tell whether a model's name passes the operator's globs and the key's own."""
    return _matches_any(model, allowlist) and (key_models is None or _matches_any(model, key_models))


def refuse_model(model: str) -> Rejection:
    """Refuse a model in the same words whether it is unknown, unpriced or not allowed."""
    return Rejection(
        404, "model_not_found", f"The model {model!r} does not exist or you do not have access to it.", param="model"
    )


def _matches_any(model: str, globs: tuple[str, ...]) -> bool:
    return any(glob == "*" or fnmatch.fnmatchcase(model, glob) for glob in globs)
