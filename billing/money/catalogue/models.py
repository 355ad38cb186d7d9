"""Models that can be sold: their rates by tier, what customers pay for them, and which name is priced by which."""

import re
from collections.abc import Mapping
from datetime import date
from fractions import Fraction
from typing import Any

from billing.money.errors import UnpricedModel
from billing.money.model_rates import ModelRates
from billing.money.usage import Value

LONG_CONTEXT_TOKENS = 272_000
"""Above this many input tokens the whole request costs the long rates; exactly this many is still short."""
DATED = re.compile(r"^(.+)-\d{4}-\d{2}-\d{2}$")
SEARCH, STORAGE = "vector_store_search", "vector_store_storage"
"""Names under which searches of vector stores and their storage are billed."""


class Tier(Value, frozen=True):
    """One service tier: the usual card, and the one for long context where the model has one."""

    short: ModelRates
    long: ModelRates | None

    def card(self, input_tokens: int) -> ModelRates:
        """Return the card that a request with that much input is priced by."""
        return self.long if self.long is not None and input_tokens > LONG_CONTEXT_TOKENS else self.short


class Model(Value, frozen=True):
    """A model that can be sold: what it costs us (`tiers`), what customers pay, and what bounds it.

    Customers pay `markup` times the cost, or by `sale` where a tier has explicit prices. `ends`: the last day (UTC) on
    which OpenAI serves it, None where none is known; `successor`: the model to use then, "" where none is named.
    """

    name: str
    mode: str
    endpoints: frozenset[str]
    reasoning: bool
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    searches_each_call: bool
    tiers: Mapping[str, Tier]
    markup: Fraction
    sale: Mapping[str, Tier]
    ends: date | None
    successor: str

    def has_ended(self, today: date) -> bool:
        """Tell whether its last day is over."""
        return self.ends is not None and today > self.ends

    def tier(self, name: str) -> Tier:
        """Return the rates of a service tier. Raises UnpricedModel when this model is not sold in it."""
        found = self.tiers.get(name)
        if found is None:
            raise UnpricedModel(self.name, f"has no price in service tier {name!r}.")
        return found


def family(name: str) -> str:
    """Return the name under which a model's figures are shown: without its date, of a fine-tuned one the base.

    A name that is served is priced by itself or by such a name (PriceBook.find), so there are no more of them than
    priced models, whatever dates and owners clients think of.
    """
    base = f"ft:{name.split(':')[1]}" if name.startswith("ft:") else name
    dated = DATED.match(base)
    return dated[1] if dated else base


def is_priced(row: Mapping[str, Any]) -> bool:
    """Tell whether a catalogue row has any price to sell by."""
    return bool(row["rates"] or "per_second" in row or "per_character" in row)
