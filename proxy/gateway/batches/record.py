"""A batch as SQL keeps it while it runs, and its plan as a whole. Pure."""

import msgspec

from billing.money.catalogue.models import Model
from billing.money.errors import UnpricedModel
from billing.money.pricing import BookOrigin, Bounds, Charge, PriceBook
from config.settings import Settings
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.endpoints import BATCHES
from proxy.gateway.plan import BATCH, NO_TOOLS, Plan
from proxy.gateway.request_hold import RequestHold

NOTHING = Bounds(0, 0)


LONGEST_MAKING = 20


def making_seconds(settings: Settings) -> int:
    """Seconds that a worker waits for upstream to take a batch: a hold's lease at most."""
    return min(LONGEST_MAKING, settings.advanced.hold_lease_seconds)


class BatchRecord(msgspec.Struct, frozen=True):
    """The facts that settling a batch needs; no text of its lines, which stand in the sent file.

    `held` in millicredits; `model` is that of the first line.
    """

    key_id: str
    endpoint: str
    model: str
    held: int
    free: bool
    started_ms: int
    lines: int
    book: BookOrigin
    insurance: bool
    end_user: str = ""
    tags: str = ""


encode_batch = msgspec.json.Encoder().encode
decode_batch = msgspec.json.Decoder(BatchRecord).decode


def whole_plan(name: str, model: Model, ceiling: Charge, also: tuple[str, ...] = ()) -> Plan:
    """Plan of a batch as one request: its lines are bounded and capped each by itself, so it has no bounds of its own,
    and an orphan owes nothing. `also`: the other models that its lines ask for.
    """
    parsed = Parsed(model=name, source=b"", choices=0)
    return Plan(BATCHES, parsed, model, BATCH, 0, False, 0, NOTHING, ceiling, NO_TOOLS, also=also)


def recorded_plan(record: BatchRecord, prices: PriceBook) -> Plan:
    """Plan of a batch again, for settling it. Raises UnpricedModel when its model is no longer sold."""
    model = prices.find(record.model)
    if model is None:
        raise UnpricedModel(record.model, "has no price any more.")
    return whole_plan(record.model, model, prices.ceiling(model, BATCH, NOTHING))


def batch_record(hold: RequestHold, endpoint: str, lines: int) -> str:
    """Facts of a batch that is held for and about to be made, as JSON; it ends by the terms it began under."""
    return encode_batch(
        BatchRecord(
            key_id=hold.key.key_id,
            endpoint=endpoint,
            model=hold.plan.parsed.model,
            held=hold.amount,
            free=hold.free,
            started_ms=hold.started_ms,
            lines=lines,
            book=hold.terms.prices.origin,
            insurance=hold.terms.insurance,
            end_user=hold.labels.end_user,
            tags=hold.labels.tags,
        )
    ).decode()
