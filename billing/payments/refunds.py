"""Giving a payment back, in whole or in part: written down, asked of Stripe, and booked by what Stripe then says of it.

The asking and its audit row come first (refund_askings.py), so that no money goes back that nobody is named for, and
one asking is one refund however often it is repeated. The refund at Stripe names its asking. Where a process can die:

- before Stripe is asked, or before its answer is kept: the asking has no answer. Asked again, Stripe is asked for
  refunds of the payment with its id first; only when there is none is one made, under the same idempotency key.
- after that: the asking has its refund, and every repeat is told of it.

Stripe keeps the first result of a key for a day, its own failures too. What it keeps is no answer to wait for: it is
looked whether the refund was made all the same, and if not, another attempt has another key.
"""

import logging

from billing.ledger.audit_log import Who
from billing.money.amounts import written_usd
from billing.money.errors import NotYet, ReferenceTaken, StoreUnavailable, StripeRefused
from billing.payments.claim_store import ClaimNews, ClaimStore, whole_of
from billing.payments.claims import cents_within, share
from billing.payments.purchase import MILLICREDITS_PER_CENT, NotRefundable, Refunded, RefundedPart, RefundInDoubt
from billing.payments.purchase_store import Purchase, PurchaseStore
from billing.payments.refund_askings import RefundAsking, RefundAskings, RefundWish
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.objects import ASKING_ID, Refund
from billing.payments.stripe.sync import Sync
from billing.storage.database import Database, now_ms

log = logging.getLogger("tollkeeper.stripe")

KEYS = 3
"""Idempotency keys that one call goes through at most, while Stripe answers each with a failure that it keeps."""
PAGE = 200
LONGEST_CALL_MS = 120_000
"""How long a call for a refund may go on, with its library's tries: nobody steps over one that is younger."""
BY_HAND = "it was paid by bank: send the money back, then write that down with `tollkeeper purchases refund`"


class Refunds:
    """Refunds that are asked for here. Those that are made at Stripe are booked by the same sync."""

    def __init__(
        self, database: Database, gateway: StripeGateway, purchases: PurchaseStore, claims: ClaimStore, sync: Sync
    ) -> None:
        """`sync` books what is made here."""
        self._askings, self._gateway, self._purchases, self._sync = RefundAskings(database), gateway, purchases, sync
        self._claims = claims

    async def refund(self, purchase_id: str, cents: int | None, who: Who, reason: str, reference: str = "") -> Refunded:
        """Give `cents` back to the buyer (None: all that is left); the same `reference` is given back once.

        Raises NotRefundable, ReferenceTaken, StripeRefused, StoreUnavailable; RefundInDoubt when it may have been made:
        asking again in the same way makes no other.
        """
        purchase = await self._purchases.get(purchase_id)
        if purchase is None:
            raise NotRefundable(f"there is no purchase {purchase_id!r}")
        wish = RefundWish(cents, reason, reference)
        known = await self._askings.matching(purchase_id, wish)
        if known is None:
            await self._look_for_unanswered(purchase)
        asking = await self._askings.begin(purchase_id, wish, who)
        if asking.state == "made":
            return await self._told_before(asking)
        if purchase.origin == "transfer":
            return await self._write_down(purchase, asking)
        try:
            made = await self._at_stripe(purchase, asking) if known is not None else None
            return await self._book(asking, made, again=True) if made is not None else await self._ask(purchase, asking)
        except StoreUnavailable as away:
            raise _in_doubt(asking, away) from None

    async def _ask(self, purchase: Purchase, asking: RefundAsking) -> Refunded:
        """Have Stripe make the refund, by another key while it answers with a failure that it keeps."""
        for last in (False,) * (KEYS - 1) + (True,):
            try:
                made = await self._gateway.refund_payment(
                    purchase.payment_intent_id or "", asking.amount_cents, purchase.id, asking.id, asking.key
                )
                return await self._book(asking, made)
            except StoreUnavailable as away:
                if not away.kept or last:
                    raise
            except StripeRefused as refused:
                if not refused.kept or last:
                    await self._askings.refused(asking, str(refused))
                    raise
            found = await self._at_stripe(purchase, asking)
            if found is not None:
                return await self._book(asking, found)
            asking = await self._askings.next_attempt(asking)
            if asking.state == "made":
                return await self._told_before(asking)
        raise RuntimeError("unreachable")

    async def _book(self, asking: RefundAsking, made: Refund, *, again: bool = False) -> Refunded:
        await self._askings.made(asking, made.id)
        try:
            await self._sync.refund(made.id)
        except NotYet as error:  # it is made all the same, and whoever asked must not be told otherwise
            log.warning("refund %s of %s is booked by its events: %s", made.id, asking.purchase_id, error)
        return Refunded(made.id, made.amount, made.status or "pending", asking.reference, again)

    async def _write_down(self, purchase: Purchase, asking: RefundAsking) -> Refunded:
        """Book money that a person sends back by bank: its asking is its id, and nobody else is asked."""
        news = ClaimNews(asking.id, "refund", asking.amount_cents, "succeeded", counts=True, lost=False)
        await self._sync.returned(purchase.id, news)
        await self._askings.made(asking, asking.id)
        return Refunded(asking.id, asking.amount_cents, "succeeded", asking.reference, again=False)

    async def _told_before(self, asking: RefundAsking) -> Refunded:
        """Return the refund that answered an asking before, as we know it."""
        booked = [claim for claim in await self._claims.of_purchase(asking.purchase_id) if claim.id == asking.refund_id]
        status = booked[0].status if booked else "pending"
        return Refunded(asking.refund_id, asking.amount_cents, status, asking.reference, again=True)

    async def _at_stripe(self, purchase: Purchase, asking: RefundAsking) -> Refund | None:
        """Return the refund that Stripe made for an asking."""
        async for refund in self._gateway.refunds(payment_intent=purchase.payment_intent_id):
            if refund.metadata.get(ASKING_ID) == asking.id:
                return refund
        return None

    async def _look_for_unanswered(self, purchase: Purchase) -> None:
        """Book what lost answers made, before what is left of the purchase is worked out for another asking."""
        for asking in await self._askings.unanswered(purchase.id):
            if purchase.origin == "transfer":
                await self._write_down(purchase, asking)
                continue
            made = await self._at_stripe(purchase, asking)
            if made is not None:
                await self._book(asking, made)

    async def refund_rest(self, account_id: str, left: int, who: Who, reason: str) -> list[RefundedPart]:
        """Give back what an account has left, `left` millicredits: of its purchases, the newest first.

        Credits that nobody paid for stay. A purchase that cannot be given back keeps none of the others. Raises
        StoreUnavailable.
        """
        found: list[RefundedPart] = []
        before: tuple[int, str] | None = None
        while left > 0 and (rows := await self._purchases.of_account(account_id, PAGE, before)):
            before = (rows[-1].created_at, rows[-1].id)
            for row in (row for row in rows if row.state == "credited" and row.total_cents):
                before_look, _ = await self._gone(row.id)
                await self._look_for_unanswered(row)
                gone, lapsed = await self._gone(row.id)
                left -= _worth(row, before_look, gone - before_look)
                cents = cents_within(whole_of(row), gone, max(left, 0))
                if not cents:
                    continue
                if row.origin == "transfer":
                    found.append(RefundedPart(row.id, None, BY_HAND))
                    continue
                try:
                    # asked again before it is booked, it is the same refund; after one that failed it is another
                    reference = f"rest:{row.id}:{gone}" + (f":{lapsed}" if lapsed else "")
                    if await self._askings.is_abandoned(reference, cents, now_ms() - LONGEST_CALL_MS):
                        reference += f"={cents}"
                    found.append(RefundedPart(row.id, await self.refund(row.id, cents, who, reason, reference)))
                except (NotRefundable, ReferenceTaken, StripeRefused) as error:
                    found.append(RefundedPart(row.id, None, str(error)))
                    continue
                left -= _worth(row, gone, cents)
        return found

    async def _gone(self, purchase_id: str) -> tuple[int, int]:
        """Return the cents of a purchase that went back, and how many refunds of it count no more."""
        claims = await self._claims.of_purchase(purchase_id)
        lapsed = [claim for claim in claims if claim.kind == "refund" and not claim.counts]
        return sum(claim.amount_cents for claim in claims if claim.counts), len(lapsed)


def _worth(purchase: Purchase, gone: int, cents: int) -> int:
    """Return the millicredits that `cents` take back after `gone` cents."""
    whole = whole_of(purchase)
    before, after = share(whole, gone), share(whole, gone + cents)
    return after.paid + after.bonus - before.paid - before.bonus


def _in_doubt(asking: RefundAsking, away: StoreUnavailable) -> RefundInDoubt:
    dollars = written_usd(asking.amount_cents * MILLICREDITS_PER_CENT)
    text = (
        f"the refund of ${dollars} of {asking.purchase_id} may have been made: no answer came "
        f"({str(away).removeprefix(away.store + ': ')}). Ask again with the reference {asking.reference!r}: it is "
        "looked for at Stripe first and never made twice; `tollkeeper stripe purchases ACCOUNT` shows what went back"
    )
    return RefundInDoubt(away.store, text, in_doubt=True)
