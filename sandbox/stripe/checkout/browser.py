"""Paths of the customer's browser: pages, form posts, redirects."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from sandbox.stripe.account.errors import StripeError
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.checkout import pages, sessions
from sandbox.stripe.payments import customers, payment_intents, payment_methods, setup_intents

Fields = Mapping[str, str]
_SAID: Final = ("email", "name", "business_name", "tax_id", "postal_code")
_NO_PAGE: Final = "There is no such page in this sandbox."


class Page(msgspec.Struct, frozen=True):
    """HTML, or a redirect when `location` is set."""

    status: int
    html: str = ""
    location: str | None = None


class HostedPages:
    """The paths outside /v1/ and /__stripe/."""

    def __init__(self, world: World) -> None:
        """Share the world with the API."""
        self._world = world

    def answer(self, method: str, path: str, body: bytes) -> Page:
        """Return the page for a browser's request."""
        world = self._world
        world.run_due()
        parts = path.strip("/").split("/")
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        posted = method == "POST"
        try:
            if parts[:2] == ["c", "pay"] and len(parts) in {3, 4}:
                session = world.get("checkout.session", parts[2])
                return (
                    self._authenticate(session, fields, posted=posted)
                    if parts[3:] == ["authenticate"]
                    else self._pay(session, fields, posted=posted)
                )
            if parts[0] == "authenticate" and len(parts) == 2:
                return self._authenticate_intent(parts[1], fields, posted=posted)
            if parts[0] == "receipts" and len(parts) == 2:
                charge = world.get("charge", parts[1])
                return Page(200, pages.receipt(charge, list(world.find("refund", charge=charge["id"]))))
            if parts[0] == "invoices" and len(parts) in {2, 3}:
                return Page(200, pages.invoice(world.get("invoice", parts[1])))
            if parts[:2] == ["p", "session"] and len(parts) == 3:
                return self._portal(world.get("billing_portal.session", parts[2]), fields)
        except StripeError as error:
            return Page(error.status, pages.closed("Not found", str(error)))
        finally:
            world.run_due()
        return Page(404, pages.closed("Not found", _NO_PAGE))

    def _pay(self, session: Obj, fields: Fields, *, posted: bool) -> Page:
        if session["status"] == "complete":
            if posted:
                # A second press of the button must not look like a failure.
                return self._done(session)
            return Page(
                200, pages.closed("You're all done here", "This session has been paid.", sessions.success_url(session))
            )
        if session["status"] == "expired":
            return Page(
                410, pages.closed("Session expired", "This checkout session has expired.", session["cancel_url"])
            )
        if not posted:
            return Page(200, pages.checkout(session, session["_items"], self._prefilled(session)))
        try:
            method = self._method(fields)
            said = {name: fields[name] or None for name in _SAID if name in fields}
            sessions.pay(self._world, session, method, msgspec.convert(said, sessions.Payment))
        except StripeError as error:
            return Page(402, pages.checkout(session, session["_items"], dict(fields), str(error)))
        return self._next(session)

    def _prefilled(self, session: Obj) -> dict[str, str]:
        known = self._world.objects["customer"].get(session["customer"] or "") or {}
        email = session["customer_email"] or known.get("email") or "customer@example.com"
        return {"email": email, "name": known.get("name") or "Test Customer"}

    def _method(self, fields: Fields) -> Obj:
        kind = fields.get("method", "card")
        billing = {"email": fields.get("email") or None, "name": fields.get("name") or None}
        if kind == "card":
            month, _, year = fields.get("expiry", "12/34").partition("/")
            expiry = {"exp_month": _number(month), "exp_year": _number(year)}
            details = {"number": fields.get("number", ""), "cvc": fields.get("cvc", "").strip()} | expiry
        else:
            details = (
                {"iban": fields.get("account", "")}
                if kind == "sepa_debit"
                else {"account_number": fields.get("account", "")}
            )
        return payment_methods.create_method(self._world, {"type": kind, kind: details, "billing_details": billing})

    def _next(self, session: Obj) -> Page:
        if sessions.waits_for_bank(self._world, session):
            return Page(303, location=f"/c/pay/{session['id']}/authenticate")
        return self._done(session)

    def _done(self, session: Obj) -> Page:
        if not session["success_url"]:
            return Page(200, pages.closed("Thank you", "This session has been paid."))
        return Page(303, location=sessions.success_url(session))

    def _authenticate(self, session: Obj, fields: Fields, *, posted: bool) -> Page:
        if not sessions.waits_for_bank(self._world, session):
            return Page(303, location=f"/c/pay/{session['id']}")
        if not posted:
            return Page(200, pages.authentication(f"/c/pay/{session['id']}/authenticate", "Your payment"))
        try:
            sessions.authenticate(self._world, session, passed=fields.get("result") == "pass")
        except StripeError as error:
            return Page(402, pages.checkout(session, session["_items"], self._prefilled(session), str(error)))
        return self._next(session)

    def _authenticate_intent(self, wanted: str, fields: Fields, *, posted: bool) -> Page:
        """Return the page of a next_action outside of checkout."""
        is_payment = wanted.startswith("pi_")
        intent = self._world.get("payment_intent" if is_payment else "setup_intent", wanted)
        if intent["status"] != "requires_action":
            return Page(200, pages.closed("Nothing to do", f"The status is {intent['status']}."))
        if not posted:
            return Page(200, pages.authentication(f"/authenticate/{wanted}", "Your payment"))
        back = intent["next_action"]["redirect_to_url"]["return_url"]
        try:
            (payment_intents if is_payment else setup_intents).authenticate(
                self._world, intent, passed=fields.get("result") == "pass"
            )
        except StripeError as error:
            if not back:
                return Page(402, pages.closed("Failed", str(error)))
        return (
            Page(303, location=back) if back else Page(200, pages.closed("Done", f"The status is {intent['status']}."))
        )

    def _portal(self, session: Obj, fields: Fields) -> Page:
        if fields.get("remove"):
            found = self._world.get("payment_method", fields["remove"])
            if found["customer"] == session["customer"]:
                customers.detach(self._world, found)
            return Page(303, location=f"/p/session/{session['id']}")
        return Page(200, pages.portal(session, list(self._world.find("payment_method", customer=session["customer"]))))


def _number(text: str) -> int:
    """Read a number; any other text is left for the card check to refuse."""
    return int(text.strip()) if text.strip().isdecimal() else 99
