"""The checkpoint of a request: what is booked if its process dies now. Pure.

Bounded input and the output streamed so far, at the prices it was held by: an orphan never owes more than its hold
(I2, I3).
"""

from billing.money.holds import Checkpoint
from billing.money.pricing import Charge, PriceBook
from billing.money.usage_record import UsageRecord, encode_record
from proxy.gateway.plan import Plan
from proxy.gateway.usage_rows import RequestFacts


def checkpoint_of(facts: RequestFacts, prices: PriceBook, output_tokens: int) -> Checkpoint:
    """Make the checkpoint of a request that has streamed so many tokens: its charge, and the row to book."""
    plan = facts.plan
    charge = checkpoint_charge(plan, prices, output_tokens)
    record = encode_record(
        UsageRecord(
            charge_id=facts.request_id,
            account_id=facts.key.account_id,
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=plan.parsed.model,
            created_at=facts.started_ms,
            held_millicredits=facts.held,
            cost_millicredits=charge.cost,
            usage_source="bounded",
            outcome="orphaned",
            rates=charge.rates,
            service_tier=charge.tier,
            stream=plan.parsed.stream,
            input_tokens=plan.bounds.input_tokens,
            output_tokens=output_tokens,
        )
    )
    return Checkpoint(facts.request_id, facts.key.account_id, charge.amount, record)


def checkpoint_charge(plan: Plan, prices: PriceBook, output_tokens: int) -> Charge:
    """Price what an orphan of this plan owes: its input bound, and the output streamed so far."""
    bounds = plan.bounds._replace(output_tokens=min(output_tokens, plan.bounds.output_tokens))
    return prices.ceiling(plan.model, plan.tier, bounds)
