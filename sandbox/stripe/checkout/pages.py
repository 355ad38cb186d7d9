"""The hosted pages: HTML that works without a script, by keyboard and by screen reader."""

from html import escape
from typing import Any, Final

from sandbox.stripe.account.cards import BANK_TYPES, DEFAULT_ACCOUNT, DEFAULT_NUMBER
from sandbox.stripe.account.world import Obj

Fields = dict[str, str]
_STYLE: Final = """
:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:2rem auto;padding:0 1rem}
label,legend{display:block;font-weight:600;margin-top:.75rem}input:not([type=radio]){width:100%;box-sizing:border-box;font:inherit;padding:.5rem;margin-top:.25rem}
fieldset{border:1px solid #8888;border-radius:.5rem;margin:1rem 0}
.row{display:flex;gap:1rem}.row>*{flex:1}fieldset label{font-weight:400}
button,.button{font:inherit;padding:.6rem 1.2rem;border-radius:.5rem;border:1px solid #635bff;background:#635bff;
color:#fff;cursor:pointer;text-decoration:none;display:inline-block}
.button.plain,button.plain{background:none;color:inherit;border-color:#8888}table{width:100%;border-collapse:collapse}td,th{text-align:left;
padding:.25rem 0}td:last-child,th:last-child{text-align:right}
[role=alert]{border:2px solid #c00;border-radius:.5rem;padding:.75rem}.note{font-size:.875rem}
:focus-visible{outline:3px solid #ffb300;outline-offset:2px}
"""
_CARDS_HINT: Final = (
    ("4242 4242 4242 4242", "succeeds"),
    ("4000 0000 0000 0002", "declined"),
    ("4000 0000 0000 9995", "insufficient funds"),
    ("4000 0025 0000 3155", "needs authentication"),
    ("4000 0000 0000 0259", "succeeds, then disputed"),
    ("4000 0000 0000 5126", "succeeds; its refund fails later"),
)


def document(title: str, body: str) -> str:
    """Return a whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>{body}"
        '<p class="note">Stripe sandbox: a simulator. No money moves.</p></main></body></html>'
    )


def money(amount: int | None, currency: str | None) -> str:
    """Write cents as people read them."""
    whole, cents = divmod(amount or 0, 100)
    return f"{'$' if currency == 'usd' else ''}{whole}.{cents:02d} {(currency or '').upper()}".strip()


def checkout(session: Obj, items: list[Obj], fields: Fields, error: str | None = None) -> str:
    """Return the form with which a session is paid."""
    total = money(session["amount_total"], session["currency"])
    paying = session["mode"] == "payment"
    rows = "".join(
        f"<tr><td>{escape(str(item['description']))} × {item['quantity']}</td>"
        f"<td>{money(item['amount_subtotal'], item['currency'])}</td></tr>"
        for item in items
    )
    details = session["total_details"] or {}
    for name, label in (("amount_discount", "Discount"), ("amount_tax", "Tax")):
        if details.get(name):
            rows += f"<tr><td>{label}</td><td>{money(details[name], session['currency'])}</td></tr>"
    summary = (
        f"<table><caption class=note>Your order</caption>{rows}"
        f"<tr><th scope=row>Total</th><th>{total}</th></tr></table>"
        if paying
        else ""
    )
    alert = f'<p role="alert" id="error">{escape(error)}</p>' if error else ""
    later = (
        session["_data"].get("setup_future_usage") or not paying
    ) and "<p class=note>Your payment method will be saved for future payments.</p>"
    cancel = (
        f'<a class="button plain" id="cancel" href="{escape(session["cancel_url"])}">Cancel</a>'
        if session["cancel_url"]
        else ""
    )
    label = f"Pay {total}" if paying else "Save card"
    return document(
        "Checkout",
        f'{summary}{alert}<form method="post" action="/c/pay/{session["id"]}">'
        f"{_contact(fields)}{_company(session, fields)}{_methods(session, fields)}{later or ''}"
        f'<p><button type="submit" id="pay">{label}</button> {cancel}</p></form>{_hint()}',
    )


def _input(name: str, label: str, value: str, more: str = "") -> str:
    return (
        f'<div><label for="{name}">{label}</label>'
        f'<input id="{name}" name="{name}" value="{escape(value)}" {more}></div>'
    )


def _contact(fields: Fields) -> str:
    email = _input("email", "Email", fields.get("email", ""), 'type="email" autocomplete="email" required')
    return email + _input("name", "Name on card or account", fields.get("name", ""), 'autocomplete="name" required')


def _company(session: Obj, fields: Fields) -> str:
    """Ask for what the session collects of a company, and for its address."""
    asked = ""
    if session["billing_address_collection"] == "required" or session["automatic_tax"]["enabled"]:
        asked += _input("postal_code", "ZIP or postal code", fields.get("postal_code", "94103"), "required")
    if (session.get("tax_id_collection") or {}).get("enabled"):
        asked += _input("business_name", "Company (if you buy for one)", fields.get("business_name", ""))
        asked += _input("tax_id", "VAT or tax id", fields.get("tax_id", ""))
    return asked


def _methods(session: Obj, fields: Fields) -> str:
    """Card and bank fields; a choice between them where the session takes both."""
    kinds = [name for name in session["payment_method_types"] if name == "card" or name in BANK_TYPES]
    chosen = fields.get("method", kinds[0] if kinds else "card")
    labels = {"card": "Card", "us_bank_account": "US bank account", "sepa_debit": "SEPA direct debit"}
    choice = "".join(
        f'<label for="method_{name}"><input type="radio" name="method" id="method_{name}" value="{name}"'
        f"{' checked' if name == chosen else ''}> "
        f"{labels[name]}</label>"
        for name in kinds
    )
    card = (
        _input(
            "number",
            "Card number",
            fields.get("number", DEFAULT_NUMBER),
            'inputmode="numeric" autocomplete="cc-number"',
        )
        + '<div class="row">'
        + _input("expiry", "Expires (MM/YY)", fields.get("expiry", "12/34"), 'autocomplete="cc-exp"')
        + _input("cvc", "Security code", fields.get("cvc", "123"), 'inputmode="numeric" autocomplete="cc-csc"')
        + "</div>"
    )
    bank = _input("account", "Account number or IBAN", fields.get("account", DEFAULT_ACCOUNT))
    parts = (
        f"<fieldset><legend>Payment method</legend>{choice}</fieldset>"
        if len(kinds) > 1
        else f'<input type="hidden" name="method" value="{chosen}">'
    )
    parts += f"<fieldset><legend>Card</legend>{card}</fieldset>" if "card" in kinds else ""
    return parts + (f"<fieldset><legend>Bank account</legend>{bank}</fieldset>" if set(kinds) & set(BANK_TYPES) else "")


def _hint() -> str:
    rows = "".join(f"<tr><td>{number}</td><td>{what}</td></tr>" for number, what in _CARDS_HINT)
    banks = "<p class=note>Bank accounts: 000123456789 arrives, 000111111116 is closed, 000222222227 lacks funds.</p>"
    return f"<details><summary>Test cards and accounts</summary><table>{rows}</table>{banks}</details>"


def authentication(action: str, what: str) -> str:
    """Return the page on which the bank asks whether it is really the customer."""
    return document(
        "3D Secure test page",
        f"<p>{escape(what)} requires authentication.</p>"
        f'<form method="post" action="{escape(action)}"><p>'
        '<button type="submit" name="result" value="pass" id="complete">Complete authentication</button> '
        '<button type="submit" class="plain" name="result" value="fail" id="fail">Fail authentication</button>'
        "</p></form>",
    )


def closed(title: str, text: str, url: str | None = None) -> str:
    """Return a page on which nothing can be done any more."""
    link = f'<p><a class="button" href="{escape(url)}">Continue</a></p>' if url else ""
    return document(title, f"<p>{escape(text)}</p>{link}")


def receipt(charge: Obj, refunds: list[Obj]) -> str:
    """Return the receipt of a charge in its present state."""
    rows = f"<tr><td>Paid</td><td>{money(charge['amount'], charge['currency'])}</td></tr>"
    rows += "".join(
        f"<tr><td>Refund ({escape(item['status'])})</td><td>-{money(item['amount'], item['currency'])}</td></tr>"
        for item in refunds
    )
    return document("Receipt", f"<p>{escape(charge['id'])}</p><table>{rows}</table>")


def invoice(found: Obj) -> str:
    """Return the page of an invoice."""
    lines = "".join(
        f"<tr><td>{escape(str(line['description']))}</td><td>{money(line['amount'], found['currency'])}</td></tr>"
        for line in found["lines"]["data"]
    )
    tax = money(found["total"] - found["total_excluding_tax"], found["currency"])
    ids = ", ".join(escape(one["value"]) for one in found["customer_tax_ids"])
    return document(
        f"Invoice {found['number']}",
        f"<p>{escape(str(found['customer_name']))} {ids}</p><table>{lines}<tr><td>Tax</td><td>{tax}</td></tr>"
        f"<tr><th scope=row>Total</th><th>{money(found['total'], found['currency'])}</th></tr></table>",
    )


def portal(session: Obj, methods: list[Obj]) -> str:
    """Return the customer's saved cards, each with a button to remove it."""
    rows = "".join(
        f'<form method="post" action="/p/session/{session["id"]}"><p>{escape(_described(found))} '
        f'<button type="submit" class="plain" name="remove" value="{found["id"]}">Remove</button></p></form>'
        for found in methods
    )
    back = (
        f'<p><a class="button" href="{escape(session["return_url"])}">Return</a></p>' if session["return_url"] else ""
    )
    return document("Payment methods", (rows or "<p>No saved payment methods.</p>") + back)


def _described(found: dict[str, Any]) -> str:
    return f"{found['type']} ending in {found[found['type']]['last4']}"
