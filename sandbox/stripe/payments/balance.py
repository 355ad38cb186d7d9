"""Balance transactions: the Stripe balance as Stripe states it, kept beside the record."""

from typing import Any, Final

from sandbox.stripe.account.object_fields import blank
from sandbox.stripe.account.world import Obj, World, timer_action

_AVAILABLE_S: Final = 2 * 86_400
_CATEGORIES: Final = {"refund_failure": "refund_failure", "payment": "charge", "payment_refund": "refund"}


def fee_of(world: World, amount: int) -> int:
    """Stripe's fee on a charge in cents, half a cent rounded up."""
    return (amount * world.live.fee_permille + 500) // 1000 + world.live.fee_fixed


def post(
    world: World,
    kind: str,
    source: Obj,
    amount: int,
    fee: int = 0,
    *,
    category: str | None = None,
    description: str | None = None,
) -> Obj:
    """Move the balance: `amount` is signed, `fee` is taken on top."""
    details = (
        [] if not fee else [{"amount": fee, "application": None, "currency": source["currency"], "type": "stripe_fee"}]
    )
    for detail in details:
        detail["description"] = "Dispute fee" if source["object"] == "dispute" else "Stripe processing fees"
    now = world.now()
    fields = blank(
        "balance_transaction",
        amount=amount,
        available_on=now + _AVAILABLE_S,
        created=now,
        currency=source["currency"],
        description=description,
        fee=fee,
        fee_details=details,
        net=amount - fee,
        reporting_category=category or _CATEGORIES.get(kind, kind),
        source=source["id"],
        type=kind,
    )
    made = world.add("balance_transaction", fields)
    world.later(_AVAILABLE_S, _available, made["id"])
    return made


@timer_action("money._available")
def _available(world: World, transaction_id: str) -> None:
    world.objects["balance_transaction"][transaction_id]["status"] = "available"


def record_movement(world: World, kind: str, charge: Obj, amount: int, fee: int, **ids: Any) -> None:
    """Put a movement on record, with everything a ledger may know it by."""
    intent = world.objects["payment_intent"].get(charge["payment_intent"]) or {}
    session = world.objects["checkout.session"].get(intent.get("_session", "")) or {}
    world.record.add(
        kind=kind,
        at=world.time(),
        amount=amount,
        fee=fee,
        currency=charge["currency"],
        payment_intent=charge["payment_intent"],
        charge=charge["id"],
        session=session.get("id"),
        customer=charge["customer"],
        metadata=dict(intent.get("metadata", {})),
        client_reference_id=session.get("client_reference_id"),
        tax=intent.get("_tax", 0) if kind == "paid" else 0,
        **ids,
    )


def balance(world: World) -> Obj:
    """Return the balance object: sums of the net amounts by currency."""
    sums: dict[tuple[str, str], int] = {}
    for transaction in world.objects["balance_transaction"].values():
        key = (transaction["status"], transaction["currency"])
        sums[key] = sums.get(key, 0) + transaction["net"]
    currencies = sorted({currency for _, currency in sums}) or ["usd"]

    def rows(status: str) -> list[Obj]:
        return [
            {
                "amount": sums.get((status, currency), 0),
                "currency": currency,
                "source_types": {"card": sums.get((status, currency), 0)},
            }
            for currency in currencies
        ]

    return {
        "object": "balance",
        "available": rows("available"),
        "livemode": False,
        "pending": rows("pending"),
        "refund_and_dispute_prefunding": {"available": [], "pending": []},
    }
