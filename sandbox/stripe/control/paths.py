"""The /__stripe/ paths: customer, bank and dashboard for tests. They need no key and speak JSON."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from sandbox.stripe.account.cards import BANK_TYPES, DECLINES
from sandbox.stripe.account.errors import StripeError, invalid
from sandbox.stripe.account.record import Record
from sandbox.stripe.account.settings import merged
from sandbox.stripe.account.world import Obj, World, public
from sandbox.stripe.api.faults import Fault, Faults
from sandbox.stripe.checkout import sessions
from sandbox.stripe.control.orders import (
    AuthenticateOrder,
    ClockChange,
    DisputeOrder,
    DisputeStep,
    DrainOrder,
    EndpointOrder,
    EventOrder,
    MethodChange,
    PayOrder,
    RawSending,
    RefundOrder,
    RefundStep,
    SecretRoll,
    SettleOrder,
)
from sandbox.stripe.payments import customers, disputes, payment_intents, payment_methods, refunds, setup_intents
from sandbox.stripe.webhooks import endpoints
from sandbox.stripe.webhooks.deliveries import Deliveries

CONTROL_PREFIX: Final = "/__stripe/"
# What a payment by control may end in: the payment method, and whether authentication is passed.
OUTCOMES: Final[dict[str, tuple[str, bool | None]]] = {
    "succeed": ("pm_card_visa", None),
    "decline": ("pm_card_chargeDeclined", None),
    "insufficient_funds": ("pm_card_chargeDeclinedInsufficientFunds", None),
    "expired_card": ("pm_card_chargeDeclinedExpiredCard", None),
    "authenticate": ("pm_card_authenticationRequiredOnSetup", True),
    "authenticate_always": ("pm_card_authenticationRequired", True),
    "authenticate_fail": ("pm_card_authenticationRequiredOnSetup", False),
    "authenticate_wait": ("pm_card_authenticationRequiredOnSetup", None),
    "decline_later": ("pm_card_chargeCustomerFail", None),
    "dispute": ("pm_card_createDispute", None),
    "inquiry": ("pm_card_createDisputeInquiry", None),
    "refund_fails": ("pm_card_refundFail", None),
    "refund_pending": ("pm_card_pendingRefund", None),
    "delay": ("pm_usBankAccount_success", None),
    "delay_fail": ("pm_usBankAccount_insufficientFunds", None),
}


class Control:
    """Control paths, for whoever drives the simulator."""

    def __init__(
        self, world: World, record: Record, faults: Faults, deliveries: Deliveries, stats: Callable[[], dict[str, int]]
    ) -> None:
        """Take the world and its parts, and `stats`, which makes the counts of GET /__stripe/stats."""
        self._world, self._record, self._faults, self._deliveries, self._stats = (
            world,
            record,
            faults,
            deliveries,
            stats,
        )
        self._actions: dict[tuple[str, str], Callable[[str, bytes, str], Any]] = {
            ("GET", "settings"): lambda _i, _b, _q: self._world.live,
            ("PUT", "settings"): self._put_settings,
            ("GET", "record"): self._get_record,
            ("GET", "stats"): lambda _i, _b, _q: self._stats(),
            ("GET", "deliveries"): self._get_deliveries,
            ("GET", "clock"): lambda _i, _b, _q: self._clock(),
            ("PUT", "clock"): self._put_clock,
            ("GET", "faults"): lambda _i, _b, _q: {"faults": self._faults.show()},
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("POST", "endpoints"): self._add_endpoint,
            ("POST", "endpoints/:id/roll"): self._roll,
            ("POST", "sessions/:id/pay"): self._pay,
            ("POST", "sessions/:id/expire"): self._expire,
            ("POST", "sessions/:id/fields"): self._set_fields,
            ("POST", "settle"): self._settle,
            ("POST", "authenticate"): self._authenticate,
            ("POST", "payment_methods/:id"): self._change_method,
            ("POST", "refunds"): self._refund,
            ("POST", "refunds/:id"): self._act_refund,
            ("POST", "disputes"): self._dispute,
            ("POST", "disputes/:id"): self._act_dispute,
            ("POST", "events"): self._emit,
            ("POST", "events/:id/resend"): self._resend,
        }
        self._slow: dict[tuple[str, str], Callable[[bytes], Awaitable[Any]]] = {
            ("POST", "drain"): self._drain,
            ("POST", "send"): self._send,
        }

    async def answer(self, method: str, path: str, query: str, body: bytes) -> tuple[int, Any]:
        """Status and body of a control request."""
        self._world.run_due()
        parts = path.removeprefix(CONTROL_PREFIX).strip("/").split("/")
        wanted = parts[1] if len(parts) > 1 else ""
        name = "/".join([parts[0], *([":id"] if wanted else []), *parts[2:]])
        try:
            if (method, name) in self._slow:
                return 200, await self._slow[method, name](body)
            action = self._actions.get(("PUT" if method == "PATCH" else method, name))
            if action is None:
                return 404, {"error": {"message": "No such control path.", "type": "sandbox_error"}}
            return 200, action(wanted, body, query)
        except StripeError as error:
            return error.status, {"error": error.error}
        except (msgspec.DecodeError, ValueError) as error:
            return 400, {"error": {"message": str(error), "type": "sandbox_error"}}
        finally:
            self._world.run_due()

    # -- the simulator itself ----------------------------------------------------------------------

    def _put_settings(self, _wanted: str, body: bytes, _query: str) -> Any:
        self._world.live = merged(self._world.live, msgspec.json.decode(body, type=dict[str, Any]))
        self._deliveries.settings_changed()
        return self._world.live

    def _get_record(self, _wanted: str, _body: bytes, query: str) -> Any:
        values = {name: found[0] for name, found in parse_qs(query).items()}
        since = int(values.pop("since", "0"))
        unknown = set(values) - {"kind", "payment_intent", "session", "customer", "charge", "refund", "dispute"}
        if unknown:
            raise ValueError(f"unknown filter: {', '.join(sorted(unknown))}")
        return self._record.show(since, **values)

    def _get_deliveries(self, _wanted: str, _body: bytes, query: str) -> Any:
        values = {name: found[0] for name, found in parse_qs(query).items()}
        found = [
            sending
            for sending in self._deliveries.sendings
            if all(getattr(sending, name) == value for name, value in values.items())
        ]
        return {"deliveries": found, "pending": self._deliveries.pending}

    def _clock(self) -> Any:
        return {"now": self._world.time(), "offset_s": self._world.clock_offset_s}

    def _put_clock(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=ClockChange)
        world = self._world
        world.clock_offset_s = (world.clock_offset_s if given.offset_s is None else given.offset_s) + given.advance_s
        world.run_due()
        return self._clock()

    def _add_fault(self, _wanted: str, body: bytes, _query: str) -> Any:
        self._faults.add(msgspec.json.decode(body, type=Fault))
        return {"faults": self._faults.show()}

    def _clear_faults(self, _wanted: str, _body: bytes, _query: str) -> Any:
        self._faults.clear()
        return {"faults": []}

    async def _drain(self, body: bytes) -> Any:
        given = msgspec.json.decode(body or b"{}", type=DrainOrder)
        return {"drained": await self._deliveries.drain(given.timeout_s), "pending": self._deliveries.pending}

    # -- webhooks ----------------------------------------------------------------------------------

    def _add_endpoint(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=EndpointOrder)
        return public(endpoints.create_endpoint(self._world, msgspec.to_builtins(given)))

    def _roll(self, wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body or b"{}", type=SecretRoll)
        endpoint = self._world.get("webhook_endpoint", wanted)
        return {"id": wanted, "secret": endpoints.roll_secret(self._world, endpoint, given.secret, given.overlap_s)}

    def _emit(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=EventOrder)
        found = self._world.any_object(given.object) if isinstance(given.object, str) else given.object
        if found is None:
            raise invalid(f"No such object: {given.object}", "resource_missing", status=404)
        return public(self._world.emit(given.type, found | given.fields))

    def _resend(self, wanted: str, _body: bytes, query: str) -> Any:
        event = self._world.get("event", wanted)
        chosen = parse_qs(query).get("endpoint")
        for endpoint in list(self._world.objects["webhook_endpoint"]):
            if chosen is None or endpoint in chosen:
                self._deliveries.submit(event, endpoint)
        return public(event)

    async def _send(self, body: bytes) -> Any:
        given = msgspec.json.decode(body, type=RawSending)
        known = self._world.objects["webhook_endpoint"]
        endpoint = self._world.get("webhook_endpoint", given.endpoint or next(iter(known), ""))
        secrets = endpoints.secrets_of(self._world, endpoint)
        return await self._deliveries.send(endpoint["url"], given.body.encode(), secrets, self._world.live.delivery)

    # -- the customer ------------------------------------------------------------------------------

    def _pay(self, wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body or b"{}", type=PayOrder)
        if given.outcome not in OUTCOMES:
            raise ValueError(f"outcome is one of {', '.join(OUTCOMES)}")
        world, session = self._world, self._world.get("checkout.session", wanted)
        sessions.need_open(session)
        alias, passed = OUTCOMES[given.outcome]
        method = payment_methods.method(world, given.payment_method or alias, "payment_method")
        if method["type"] not in session["payment_method_types"]:
            raise invalid(
                f"This session does not take {method['type']}, only {', '.join(session['payment_method_types'])}."
            )
        method["billing_details"] = method["billing_details"] | {"email": given.email, "name": given.name}
        sessions.pay(world, session, method, given)
        if passed is not None and sessions.waits_for_bank(world, session):
            sessions.authenticate(world, session, passed=passed)
        return public(session)

    def _expire(self, wanted: str, _body: bytes, _query: str) -> Any:
        return public(sessions.expire(self._world, self._world.get("checkout.session", wanted)))

    def _set_fields(self, wanted: str, body: bytes, _query: str) -> Any:
        session = self._world.get("checkout.session", wanted)
        session |= msgspec.json.decode(body, type=dict[str, Any])
        return public(session)

    def _settle(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body or b"{}", type=SettleOrder)
        if given.fail and given.fail not in DECLINES:
            raise ValueError(f"fail is one of {', '.join(DECLINES)}")
        world = self._world
        chosen = given.payment_intent
        if given.session is not None:
            chosen = world.get("checkout.session", given.session)["payment_intent"]
        intents = (
            list(world.find("payment_intent", status="processing"))
            if chosen is None
            else [world.get("payment_intent", chosen)]
        )
        return {"settled": [intent["id"] for intent in intents if payment_intents.settle(world, intent, given.fail)]}

    def _authenticate(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=AuthenticateOrder)
        is_payment = given.intent.startswith("pi_")
        intent = self._world.get("payment_intent" if is_payment else "setup_intent", given.intent)
        (payment_intents if is_payment else setup_intents).authenticate(self._world, intent, passed=given.passed)
        return public(intent)

    def _change_method(self, wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=MethodChange)
        found = self._world.get("payment_method", wanted)
        if given.decline is not None:
            if given.decline and given.decline not in DECLINES:
                raise ValueError(f"decline is one of {', '.join(DECLINES)}")
            found["_decline"] = given.decline
        if given.new_card and found["type"] not in BANK_TYPES:
            payment_methods.replace_card(self._world, found, last4="1881", exp_year=found["card"]["exp_year"] + 3)
        if given.detach:
            customers.detach(self._world, found)
        return public(found)

    # -- the dashboard and the bank ----------------------------------------------------------------

    def _charge(self, given: RefundOrder | DisputeOrder) -> Obj:
        world, intent = self._world, given.payment_intent
        if given.charge is not None:
            return world.get("charge", given.charge)
        if given.session is not None:
            intent = world.get("checkout.session", given.session)["payment_intent"]
        return world.get("charge", world.get("payment_intent", intent)["latest_charge"])

    def _refund(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=RefundOrder)
        params: dict[str, Any] = {"charge": self._charge(given)["id"], "reason": given.reason}
        if given.amount is not None:
            params["amount"] = given.amount
        return public(refunds.create(self._world, params, status=given.status))

    def _act_refund(self, wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=RefundStep)
        refund = self._world.get("refund", wanted)
        if given.action == "succeed":
            refunds.succeed(self._world, refund)
        elif given.action == "fail":
            refunds.fail(self._world, refund, given.reason)
        elif given.action == "cancel":
            refunds.fail(self._world, refund, status="canceled")
        else:
            raise ValueError("action is one of succeed, fail, cancel")
        return public(refund)

    def _dispute(self, _wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=DisputeOrder)
        charge = self._charge(given)
        opened = disputes.open_dispute(
            self._world,
            charge,
            given.reason,
            amount=given.amount,
            inquiry=given.inquiry,
            status=given.status,
            withdraw=given.withdraw,
        )
        return public(opened)

    def _act_dispute(self, wanted: str, body: bytes, _query: str) -> Any:
        given = msgspec.json.decode(body, type=DisputeStep)
        dispute = self._world.get("dispute", wanted)
        if given.status is not None:
            return public(disputes.move(self._world, dispute, given.status))
        if given.action not in disputes.ACTIONS:
            raise ValueError(f"action is one of {', '.join(disputes.ACTIONS)}")
        return public(disputes.act(self._world, dispute, given.action))
