"""From a parsed request to what is held for it: model, tier, bounds, price. Sans I/O.

Everything here decides about money and knows nothing of HTTP servers, sockets or stores.
"""

import re
from datetime import date
from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.ledger.objects.upstream_objects import OwnedObject
from billing.money.amounts import Millicredits
from billing.money.catalogue.models import Model
from billing.money.pricing import Bounds, Charge, PriceBook
from billing.money.usage import Value
from config.settings import Billing, Holds, Settings
from proxy.gateway.admission import has_ended, may_use_model, refuse_ended, refuse_endpoint, successor
from proxy.gateway.bodies.inventory import TOOLS, named
from proxy.gateway.bodies.parsed import NO_CONTEXT, ImageTool, Parsed, StoredContext, image_tools, with_carried
from proxy.gateway.bodies.response_tools import found_tokens
from proxy.gateway.endpoints import Endpoint
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
BATCH = "batch"
"""Tier of a batch's lines; no request names it, and no answer echoes it."""
MODEL_NAME = re.compile(r"[!-~]{1,120}")
"""Characters that may be stored and sent: no model's name has any other."""
IMAGES, RESPONSES, MODERATIONS = "/v1/images/generations", "/v1/responses", "/v1/moderations"
HOSTED_TOOLS = named(TOOLS, "hosted")
SEARCH_TOKENS = TOOLS["web_search"].tokens
CALL_PRICES = {
    "web_search": "web_search",
    "web_search_2025_08_26": "web_search",
    "web_search_preview": "",
    "web_search_preview_2025_03_11": "",
    "file_search": "file_search",
    "code_interpreter": "code_interpreter_1g",
}
"""Hosted tool → the name of its price per call; "" = by its model, others cost tokens only."""


class Plan(Value, frozen=True):
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
    conversation: OwnedObject | None = None
    """Conversation that it adds to, as it was seen."""
    also: tuple[str, ...] = ()
    """Names of further models that it asks for: of a batch, whose lines are one request."""

    @property
    def is_read_on(self) -> bool:
        """True when a part of the answer cannot tell what it costs: left by its client, it is read on to its usage.

        Unseen reasoning, sound and pictures; input that cannot be counted here (files, audio, objects of unknown size);
        hosted tools, whose calls make the model read again; summaries of a compaction, which nobody sees.
        """
        parsed = self.parsed
        unseen = self.model.reasoning or self.endpoint.drains or parsed.audio_output or parsed.compact_at is not None
        uncounted = parsed.unbounded or parsed.audio_tokens or self.context is None or self.tools.calls
        return unseen or bool(uncounted)

    @property
    def whole_input(self) -> int | None:
        """Tokens of its input at most, if nothing of it were left out; None = not known."""
        parsed = self.parsed
        if self.context is None or parsed.unbounded:
            return None
        return self.context + self.text + parsed.image_tokens + parsed.audio_tokens

    @property
    def most_added(self) -> int:
        """Tokens at most that it adds to its conversation."""
        read, whole = self.bounds.input_tokens, self.whole_input
        if whole is not None and self.conversation is not None:
            read = max(read, whole) - (self.conversation.most_tokens or 0)
        return read + self.bounds.output_tokens

    def kept_tokens(self, used: int) -> int | None:
        """Tokens that a later request may read of what it keeps, whose answer read and wrote `used`; None = not known.

        Truncated, it read less than there is, and a model with a larger window reads all of it.
        """
        window, whole = self.model.context_window, self.whole_input
        if not self.parsed.truncates or window is None or (whole is not None and whole <= window):
            return used
        return None if whole is None else max(used, whole + self.bounds.output_tokens)

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
    endpoint: Endpoint,
    parsed: Parsed,
    key: ApiKey,
    prices: PriceBook,
    settings: Settings,
    stored: StoredContext = NO_CONTEXT,
    *,
    today: date,
    in_batch: bool = False,
) -> Plan:
    """Check model, tier, tools and fields; bound by bytes; price the worst case. Raises Rejection.

    `stored`: what the stored objects that the request refers to bring into it; `today`: models end; `in_batch`: it is
    a line of a batch.
    """
    billing, context = settings.billing, stored.tokens
    if stored.sound:  # it is heard again, and its transcript may be read
        parsed = parsed._replace(audio_tokens=parsed.audio_tokens + stored.sound)
    if stored.tools:
        parsed = _with_dearest_image(with_carried(parsed, stored.tools), stored, prices)
    model = sold_model(parsed.model, endpoint.priced_as or endpoint.name, key, prices, billing, today)
    if parsed.store and not billing.allow_store:
        raise invalid(
            "Nothing is stored here (the operator's `billing.allow_store` is off): leave `store` out, or send false.",
            "store",
            "unsupported_parameter",
        )
    if parsed.background and not (billing.allow_background and billing.allow_store):
        raise invalid(
            "Background responses are off here (the operator's `billing.allow_background`): "
            "leave `background` out, and stream the response.",
            "background",
            "unsupported_parameter",
        )
    if parsed.moderator:
        sold_model(parsed.moderator, MODERATIONS, key, prices, billing, today)  # it is free, and nothing else is
    tier = _batch_tier(parsed, model) if in_batch else _tier(endpoint, parsed, model, billing)
    tools = NO_TOOLS
    if parsed.tools or parsed.image_tool:
        tools = _tools(parsed, model, key, prices, settings, today)
        tools = tools._replace(call_tokens=max(tools.call_tokens, found_tokens(parsed, stored)))
    searches = _searches(parsed, model)
    cap, cap_is_ours = _output_cap(parsed, model, settings.holds)
    text = parsed.input_bytes_bound + searches * SEARCH_TOKENS
    bounds = _bounds(parsed, model, _turns(parsed, model, text, context, tools, cap), cap, searches, tools)
    ceiling = prices.ceiling(model, tier, bounds)
    asked = parsed.store if parsed.store is not None else endpoint.stores
    keeps = bool(endpoint.makes) and billing.allow_store and (asked or bool(parsed.conversation))
    return Plan(
        endpoint,
        parsed,
        model,
        tier,
        cap,
        cap_is_ours,
        searches,
        bounds,
        ceiling,
        tools,
        context,
        text,
        keeps=keeps,
        conversation=stored.conversation,
    )


def sold_model(name: str, endpoint: str, key: ApiKey, prices: PriceBook, billing: Billing, today: date) -> Model:
    """Model, if it is allowed, priced, not ended, and works at this endpoint. Raises Rejection."""
    plain = MODEL_NAME.fullmatch(name) is not None
    model = prices.find(name) if plain and may_use_model(name, billing.model_allowlist, key.rules.models) else None
    if model is None:
        raise refuse_model(name)
    if has_ended(name, model, billing, today):
        raise refuse_ended(name, model, successor(model, endpoint, prices, billing, today, key.rules.models))
    if endpoint not in model.endpoints:
        raise refuse_endpoint(name, endpoint, model.endpoints)
    return model


def with_counted_input(plan: Plan, tokens: int, prices: PriceBook) -> Plan:
    """Plan anew with the text counted instead of bounded by bytes."""
    text = min(plan.text, tokens + plan.searches * SEARCH_TOKENS)
    return with_cap(plan._replace(text=text, input_is_counted=True), plan.cap, prices)


def with_cap(plan: Plan, cap: int, prices: PriceBook) -> Plan:
    """Plan anew with another output cap a choice, and all that grows with it: tools read their turns again."""
    turns = _turns(plan.parsed, plan.model, plan.text, plan.context, plan.tools, cap)
    bounds = _bounds(plan.parsed, plan.model, turns, cap, plan.searches, plan.tools)
    return plan._replace(cap=cap, bounds=bounds, ceiling=prices.ceiling(plan.model, plan.tier, bounds))


def held_amount(plan: Plan, *, free: bool) -> Millicredits:
    """Ceiling, or nothing while charging is off."""
    return Millicredits(0) if free or plan.endpoint.free else plan.ceiling.amount


def _tier(endpoint: Endpoint, parsed: Parsed, model: Model, billing: Billing) -> str:
    """Tier to send and to price: the client's, else the operator's. Raises Rejection."""
    if not endpoint.tiered:
        return "default"
    asked = ASKED_TIERS.get(parsed.asked_tier)
    named = f"`service_tier` {parsed.asked_tier!r}"
    if asked is None:
        raise invalid(f"{named} is not offered here.", "service_tier")
    if not asked:
        return billing.service_tier if billing.service_tier in model.tiers else "default"
    if asked not in billing.allowed_service_tiers:
        raise forbidden(f"{named} is not enabled here.", "service_tier_not_allowed", "service_tier")
    if asked not in model.tiers:
        message = f"The model {parsed.model!r} is not offered in service tier {parsed.asked_tier!r}."
        raise invalid(message, "service_tier")
    return asked


def _batch_tier(parsed: Parsed, model: Model) -> str:
    """Tier that a line of a batch is priced in: there is one. Raises Rejection."""
    if parsed.asked_tier not in (None, "auto", "default"):
        raise invalid("A batch has a price of its own: leave `service_tier` out.", "service_tier")
    if BATCH not in model.tiers:
        raise invalid(f"The model {parsed.model!r} has no batch price here.", "model", "unsupported_model")
    return BATCH


def _turns(parsed: Parsed, model: Model, text: int, context: int | None, tools: Tools, cap: int) -> list[int]:
    """Input tokens at most of each turn, where `text` is what is written there and what searches may bring.

    Every call of a hosted tool makes the model read all of it again, and what came before the call.
    """
    window = model.context_window
    once = window if context is None and window is not None else input_bound(parsed, text + (context or 0), window)
    if not tools.calls or not parsed.tools:
        return [once]
    more = tools.call_tokens + cap * parsed.choices
    turns = (once + turn * more for turn in range(tools.calls + 1))
    return [turn if window is None else min(turn, window) for turn in turns]


def _compaction(parsed: Parsed, model: Model, turns: list[int], cap: int, compact_at: int) -> tuple[int, int]:
    """(input, output) tokens at most of compactions (docs/openai.md#compaction).

    One may come before each turn and one behind the last, which goes on then. It reads what there is, and writes no
    more.
    """
    window, most = model.context_window, model.max_output_tokens
    end = turns[-1] + cap * parsed.choices
    end = end if window is None else min(end, window)
    read = [size for size in (*turns, end) if size >= compact_at]
    written = sum(size if most is None else min(size, most) for size in read)
    return sum(read) + (end if end >= compact_at else 0), written


def _bounds(parsed: Parsed, model: Model, turns: list[int], cap: int, searches: int, tools: Tools) -> Bounds:
    """Bounds of these turns and of what compacts their context."""
    read, written = (0, 0) if parsed.compact_at is None else _compaction(parsed, model, turns, cap, parsed.compact_at)
    return bounds_of(parsed, sum(turns) + read, cap, searches, tools, written)


def bounds_of(
    parsed: Parsed, tokens_in: int, cap: int, searches: int, tools: Tools = NO_TOOLS, written: int = 0
) -> Bounds:
    """Bounds that the hold is priced by; `cap` is output tokens per choice, `written` those of no choice."""
    more: tuple[tuple[Model, str, Bounds], ...] = ()
    if tools.image is not None and parsed.image_tool is not None:
        each = parsed.image_tool
        more = ((tools.image, "default", Bounds(each.input_tokens * tools.calls, each.output_tokens * tools.calls)),)
    return Bounds(
        input_tokens=tokens_in,
        output_tokens=cap * parsed.choices + parsed.extra_output + written,
        audio_input_tokens=min(parsed.audio_tokens, tokens_in),
        audio_output=parsed.audio_output,
        cache_write_12h=parsed.cache_write_12h or parsed.keeps_cache,
        web_searches=searches,
        milliseconds=parsed.milliseconds,
        characters=parsed.characters,
        calls=((tools.dearest, tools.calls),) if tools.dearest else (),
        more=more,
    )


def _with_dearest_image(parsed: Parsed, stored: StoredContext, prices: PriceBook) -> Parsed:
    """Request held for by the dearest of the image tools that it can call: which one it calls is the model's choice."""

    def cost(found: tuple[ImageTool, int]) -> int:
        tool, model = found[0], prices.find(found[0].model)
        most = Bounds(tool.input_tokens, tool.output_tokens)
        return 0 if model is None else prices.ceiling(model, "default", most).amount

    tools = image_tools(parsed, stored.tokens or 0)
    if not tools:
        return parsed
    tool, usual = max(tools, key=cost)
    return parsed._replace(image_tool=tool, picture_tokens=usual)


def _tools(parsed: Parsed, model: Model, key: ApiKey, prices: PriceBook, settings: Settings, today: date) -> Tools:
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
        place = IMAGES if hosted else RESPONSES
        image = sold_model(parsed.image_tool.model, place, key, prices, settings.billing, today)
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


def refuse_model(model: str) -> Rejection:
    """Refuse a model in the same words whether it is unknown, unpriced or not allowed."""
    return Rejection(
        404, "model_not_found", f"The model {model!r} does not exist or you do not have access to it.", param="model"
    )
