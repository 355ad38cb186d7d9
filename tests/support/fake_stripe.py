"""A gateway without a network, for tests of what lies behind it: its own objects, its own record of money, its own events.

It is no stand-in for the simulator (sandbox/stripe), which is spoken to through Stripe's real library; it is here because
thousands of generated histories should take seconds.
"""

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.stripe.gateway import PLAIN_PAGE, Declined, DueTax, Order, PageOptions
from billing.payments.stripe.objects import (
    ASKING_ID,
    OWN_ID,
    BalanceTransaction,
    CheckoutSession,
    Dispute,
    Event,
    EventData,
    EventObject,
    HookInputs,
    Hooks,
    Intent,
    Invoice,
    MethodDetails,
    MethodNumbers,
    PaymentError,
    Refund,
    StripeCharge,
    TaxInput,
    TotalDetails,
)

replace = msgspec.structs.replace


class FakeStripe:
    """Objects by id, and what happened to money: paid, refunded and lost cents by session."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.sessions_by_id: dict[str, CheckoutSession] = {}
        self.intents_by_id: dict[str, Intent] = {}
        self.refunds_by_id: dict[str, Refund] = {}
        self.disputes_by_id: dict[str, Dispute] = {}
        self.by_key: dict[str, Any] = {}
        self.events_made: list[tuple[Event, bytes]] = []
        self.orders: list[Order] = []
        self.page_options: list[PageOptions] = []
        self.charged: list[tuple[str, int, str]] = []
        """Payments of saved methods as they were asked for: key, cents, calculation of tax."""
        self.tax_permille = 190
        self.tax_refusal: StripeRefused | None = None
        self.asked: list[dict[str, Any]] = []
        self.calls = 0
        self.down = False
        self.decline: Declined | None = None
        self.livemode = False
        self.deleted_customers: set[str] = set()
        self.poisoned_keys: set[str] = set()
        self.refund_keys: list[str] = []
        self.detached: list[str] = []
        self.lose_answers = 0
        """So many refunds are made and nobody hears of it."""
        self.keep_failures = 0
        """So many calls fail without doing anything, and their keys keep that."""
        self.slow = False
        """Payments with a saved method are `processing` until `arrive()`."""

    # -- what buyers, banks and dashboards do -------------------------------------------------------------

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers):06d}"

    def emit(self, kind: str, object_id: str) -> Event:
        event = Event(
            id=self.new_id("evt"),
            type=kind,
            created=int(time.time()),
            livemode=self.livemode,
            api_version="2026-10-28.endive",
            data=EventData(object=EventObject(id=object_id)),
        )
        self.events_made.append((event, msgspec.json.encode(event)))
        return event

    def pay(self, session_id: str, *, delayed: bool = False, tax: int = 0, **wrong: Any) -> CheckoutSession:
        """The buyer pays on the page; `wrong` overrides what the session then says."""
        session = self.sessions_by_id[session_id]
        assert session.status == "open"
        total = (session.amount_subtotal or 0) + tax
        intent = self._new_intent(
            total, session.customer, session.client_reference_id or "", "processing" if delayed else "succeeded"
        )
        changes: dict[str, Any] = {
            "status": "complete",
            "payment_status": "unpaid" if delayed else "paid",
            "payment_intent": intent.id,
            "amount_total": total,
            "total_details": TotalDetails(amount_tax=tax),
            **wrong,
        }
        self.sessions_by_id[session_id] = replace(session, **changes)
        self.emit("checkout.session.completed", session_id)
        if not delayed:
            self.emit("payment_intent.succeeded", intent.id)
        return self.sessions_by_id[session_id]

    def conclude(self, session_id: str, *, paid: bool) -> None:
        """A delayed payment arrives, or does not."""
        session = self.sessions_by_id[session_id]
        intent = self.intents_by_id[str(session.payment_intent)]
        self.intents_by_id[intent.id] = replace(
            intent,
            status="succeeded" if paid else "requires_payment_method",
            amount_received=intent.amount if paid else 0,
        )
        if paid:
            self.sessions_by_id[session_id] = replace(session, payment_status="paid")
        self.emit(f"checkout.session.async_payment_{'succeeded' if paid else 'failed'}", session_id)

    def arrive(self) -> None:
        """Every slow payment arrives."""
        for key, intent in self.intents_by_id.items():
            if intent.status == "processing":
                self.intents_by_id[key] = replace(intent, status="succeeded", amount_received=intent.amount)
                self.emit("payment_intent.succeeded", key)

    def expire(self, session_id: str) -> None:
        self.sessions_by_id[session_id] = replace(self.sessions_by_id[session_id], status="expired")
        self.emit("checkout.session.expired", session_id)

    def intent_of(self, session_id: str) -> Intent:
        return self.intents_by_id[str(self.sessions_by_id[session_id].payment_intent)]

    def give_back(self, intent_id: str, cents: int, status: str = "succeeded") -> Refund:
        intent = self.intents_by_id[intent_id]
        charge = intent.latest_charge
        assert isinstance(charge, StripeCharge)
        refund = Refund(
            id=self.new_id("re"),
            amount=cents,
            currency=intent.currency,
            created=int(time.time()),
            status=status,
            charge=charge.id,
            payment_intent=intent_id,
        )
        self.refunds_by_id[refund.id] = refund
        self.emit("refund.created", refund.id)
        self.emit("charge.refunded", charge.id)
        return refund

    def change_refund(self, refund_id: str, status: str) -> None:
        self.refunds_by_id[refund_id] = replace(self.refunds_by_id[refund_id], status=status)
        self.emit("refund.failed" if status == "failed" else "refund.updated", refund_id)

    def open_dispute(
        self, intent_id: str, cents: int | None = None, status: str = "needs_response", *, withdraw: bool = True
    ) -> Dispute:
        intent = self.intents_by_id[intent_id]
        charge = intent.latest_charge
        assert isinstance(charge, StripeCharge)
        dispute = Dispute(
            id=self.new_id("dp"),
            amount=intent.amount if cents is None else cents,
            currency=intent.currency,
            status=status,
            created=int(time.time()),
            reason="fraudulent",
            charge=charge.id,
            payment_intent=intent_id,
        )
        self.disputes_by_id[dispute.id] = dispute
        self.emit("charge.dispute.created", dispute.id)
        if withdraw:
            self.move_funds(dispute.id, -dispute.amount, 1_500)
        return dispute

    def move_funds(self, dispute_id: str, cents: int, fee: int = 0) -> None:
        dispute = self.disputes_by_id[dispute_id]
        moved = BalanceTransaction(id=self.new_id("txn"), amount=cents, currency=dispute.currency, fee=fee)
        self.disputes_by_id[dispute_id] = replace(dispute, balance_transactions=(*dispute.balance_transactions, moved))
        self.emit(f"charge.dispute.funds_{'withdrawn' if cents < 0 else 'reinstated'}", dispute_id)

    def close_dispute(self, dispute_id: str, status: str) -> None:
        dispute = self.disputes_by_id[dispute_id]
        self.disputes_by_id[dispute_id] = replace(dispute, status=status)
        self.emit("charge.dispute.closed", dispute_id)
        if status == "won" and dispute.balance_transactions:
            self.move_funds(dispute_id, dispute.amount)

    def warn(self, intent_id: str) -> None:
        """A bank reports a payment as fraud, days before it is disputed."""
        event = self.emit("radar.early_fraud_warning.created", self.new_id("issfr"))
        about = EventObject(id=event.data.object.id if event.data else None, payment_intent=intent_id)
        fresh = replace(event, data=EventData(object=about))
        self.events_made[-1] = (fresh, msgspec.json.encode(fresh))

    def age(self, seconds: int) -> None:
        """Everything was made so much earlier."""
        for things in (self.sessions_by_id, self.intents_by_id, self.refunds_by_id, self.disputes_by_id):
            for key, thing in things.items():
                things[key] = replace(thing, created=thing.created - seconds)
                if isinstance(thing, Intent) and isinstance(thing.latest_charge, StripeCharge):
                    charge = replace(thing.latest_charge, created=thing.latest_charge.created - seconds)
                    things[key] = replace(things[key], latest_charge=charge)
        self.events_made = [
            (replace(event, created=event.created - seconds), payload) for event, payload in self.events_made
        ]

    def _new_intent(self, cents: int, customer: str | None, purchase_id: str, status: str) -> Intent:
        number = next(self._numbers)
        fee = BalanceTransaction(id=f"txn_{number:06d}", amount=cents, currency="usd", fee=30 + cents * 29 // 1_000)
        intent_id = f"pi_{number:06d}"
        charge = StripeCharge(
            id=f"ch_{number:06d}",
            created=int(time.time()),
            receipt_url=f"https://pay.stripe.test/r/{number}",
            payment_intent=intent_id,
            balance_transaction=fee,
            payment_method_details=MethodDetails(type="card", card=MethodNumbers(brand="visa", last4="4242")),
        )
        intent = Intent(
            id=intent_id,
            status=status,
            amount=cents,
            amount_received=cents if status == "succeeded" else 0,
            currency="usd",
            livemode=self.livemode,
            created=int(time.time()),
            customer=customer,
            payment_method=f"pm_{number:06d}",
            latest_charge=charge,
            metadata={OWN_ID: purchase_id} if purchase_id else {},
        )
        self.intents_by_id[intent_id] = intent
        return intent

    # -- the gateway --------------------------------------------------------------------------------------

    def _called(self) -> None:
        self.calls += 1
        if self.down:
            raise StoreUnavailable("stripe", "APIConnectionError: down")

    async def close(self) -> None:
        pass

    async def create_customer(self, account_id: str, name: str, key: str) -> str:
        self._called()
        if key not in self.by_key:
            failed = StoreUnavailable("stripe", "APIError: the saved 500 of this key", kept=True)
            self.by_key[key] = failed if self.keep_failures else self.new_id("cus")
            self.keep_failures = max(0, self.keep_failures - 1)
        if isinstance(self.by_key[key], Exception):
            raise self.by_key[key]
        return str(self.by_key[key])

    async def create_session(
        self,
        order: Order,
        *,
        success_url: str,
        cancel_url: str,
        save_method: bool,
        tax: bool,
        options: PageOptions = PLAIN_PAGE,
    ) -> CheckoutSession:
        self._called()
        self.orders.append(order)
        if order.key in self.poisoned_keys:
            raise StoreUnavailable("stripe", "APIError: the saved 500 of this key")
        if order.key in self.by_key:
            if self.by_key[order.key][0] != order:
                raise StripeRefused("idempotency_error", "other parameters", 400)
            if isinstance(self.by_key[order.key][1], StripeRefused):
                raise self.by_key[order.key][1]
            return self.by_key[order.key][1]
        if order.customer_id in self.deleted_customers:
            # kept under its key, as Stripe keeps what an endpoint refused once it had begun
            self.by_key[order.key] = (order, StripeRefused("resource_missing", "No such customer", 400))
            raise self.by_key[order.key][1]
        session_id = self.new_id("cs_test")
        session = CheckoutSession(
            id=session_id,
            mode="payment",
            payment_status="unpaid",
            livemode=self.livemode,
            created=int(time.time()),
            status="open",
            currency=order.currency,
            amount_subtotal=order.cents,
            amount_total=order.cents,
            customer=order.customer_id,
            client_reference_id=order.purchase_id,
            url=f"https://checkout.stripe.test/{session_id}",
        )
        self.asked.append(
            {"success_url": success_url, "cancel_url": cancel_url, "save_method": save_method, "tax": tax}
        )
        self.page_options.append(options)
        self.sessions_by_id[session_id] = session
        self.by_key[order.key] = (order, session)
        return session

    async def calculate_tax(self, order: Order, tax_code: str) -> DueTax:
        self._called()
        if self.tax_refusal is not None:
            raise self.tax_refusal
        key = f"{order.key}:tax"
        if key not in self.by_key:
            self.by_key[key] = DueTax(self.new_id("taxcalc"), order.cents * self.tax_permille // 1_000)
        found: DueTax = self.by_key[key]
        return found

    async def charge_saved_method(
        self, order: Order, payment_method_id: str, tax: DueTax | None = None
    ) -> Intent | Declined:
        self._called()
        cents = order.cents + (tax.cents if tax is not None else 0)
        self.charged.append((order.key, cents, tax.calculation_id if tax is not None else ""))
        self.orders.append(order)
        if order.key in self.poisoned_keys:
            raise StoreUnavailable("stripe", "APIError: the saved 500 of this key")
        if order.key not in self.by_key:
            if self.decline is not None:
                intent = self._new_intent(order.cents, order.customer_id, order.purchase_id, "requires_payment_method")
                self.intents_by_id[intent.id] = replace(intent, last_payment_error=PaymentError(code=self.decline.code))
                self.by_key[order.key] = self.decline._replace(intent_id=intent.id)
                self.emit("payment_intent.payment_failed", intent.id)
            else:
                intent = self._new_intent(
                    cents, order.customer_id, order.purchase_id, "processing" if self.slow else "succeeded"
                )
                if tax is not None:
                    hooks = Hooks(inputs=HookInputs(tax=TaxInput(calculation=tax.calculation_id)))
                    intent = self.intents_by_id[intent.id] = replace(intent, hooks=hooks)
                self.by_key[order.key] = intent
                self.emit("payment_intent.processing" if self.slow else "payment_intent.succeeded", intent.id)
        found: Intent | Declined = self.by_key[order.key]
        return found

    async def refund_payment(self, intent_id: str, cents: int, purchase_id: str, asking_id: str, key: str) -> Refund:
        self._called()
        self.refund_keys.append(key)
        if key not in self.by_key:
            if self.keep_failures:  # of a call that did nothing
                self.keep_failures -= 1
                self.by_key[key] = StoreUnavailable("stripe", "APIError: the saved 500 of this key", kept=True)
            else:
                refund = replace(self.give_back(intent_id, cents), metadata={OWN_ID: purchase_id, ASKING_ID: asking_id})
                self.refunds_by_id[refund.id] = self.by_key[key] = refund
        if isinstance(self.by_key[key], Exception):
            raise self.by_key[key]
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailable("stripe", "APIConnectionError: the answer was lost", in_doubt=True)
        made: Refund = self.by_key[key]
        return made

    async def portal_url(self, customer_id: str, return_url: str) -> str:
        self._called()
        return f"https://billing.stripe.test/{customer_id}?back={return_url}"

    async def detach_method(self, payment_method_id: str) -> None:
        self._called()
        self.detached.append(payment_method_id)

    async def session(self, session_id: str) -> CheckoutSession | None:
        self._called()
        found = self.sessions_by_id.get(session_id)
        if found is not None and isinstance(found.payment_intent, str):
            return replace(found, payment_intent=self.intents_by_id[found.payment_intent])
        return found

    async def intent(self, intent_id: str) -> Intent | None:
        self._called()
        return self.intents_by_id.get(intent_id)

    async def refund(self, refund_id: str) -> Refund | None:
        self._called()
        return self.refunds_by_id.get(refund_id)

    async def dispute(self, dispute_id: str) -> Dispute | None:
        self._called()
        return self.disputes_by_id.get(dispute_id)

    async def invoice(self, invoice_id: str) -> Invoice | None:
        self._called()
        url = f"https://invoice.stripe.test/{invoice_id}"
        return Invoice(id=invoice_id, number="ABCD-0001", hosted_invoice_url=url) if invoice_id else None

    async def charge(self, charge_id: str) -> StripeCharge | None:
        self._called()
        for intent in self.intents_by_id.values():
            if isinstance(intent.latest_charge, StripeCharge) and intent.latest_charge.id == charge_id:
                return intent.latest_charge
        return None

    def sessions(self, **filters: Any) -> AsyncIterator[CheckoutSession]:
        return self._list(self.sessions_by_id, filters)

    def intents(self, **filters: Any) -> AsyncIterator[Intent]:
        return self._list(self.intents_by_id, filters)

    def refunds(self, **filters: Any) -> AsyncIterator[Refund]:
        return self._list(self.refunds_by_id, filters)

    def disputes(self, **filters: Any) -> AsyncIterator[Dispute]:
        return self._list(self.disputes_by_id, filters)

    async def events(self, since: int, types: Any) -> AsyncIterator[tuple[Event, bytes]]:
        self._called()
        for event, payload in list(self.events_made):
            if event.type in types and isinstance(event.created, int) and event.created >= since:
                yield event, payload

    async def _list(self, things: dict[str, Any], filters: dict[str, Any]) -> AsyncIterator[Any]:
        self._called()
        created = filters.pop("created", {})
        filters.pop("expand", None)  # whole here already
        for thing in list(things.values()):
            in_time = created.get("gte", 0) <= thing.created <= created.get("lte", 2**53)
            if in_time and all(getattr(thing, name) == value for name, value in filters.items()):
                yield thing
