"""The hosted checkout page as a browser without scripts uses it."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.sandbox.stripe.conftest import Box


class Form(HTMLParser):
    """The fields of a page's form with their values, and what a reader of the page can rely on."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.action, self.fields, self.labels, self.ids, self.links = "", {}, set(), set(), {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "form":
            self.action = known["action"]
        elif tag == "input" and (known.get("type") != "radio" or "checked" in known):
            self.fields[known["name"]] = known.get("value") or ""
        elif tag == "label":
            self.labels.add(known["for"])
        elif tag == "a":
            self.links[known.get("id")] = known["href"]
        if tag == "input" and known.get("type") != "hidden":
            self.ids.add(known["id"])


async def submit(box: Box, session: Any, **fields: str) -> Any:
    page = await box.http.get(session.url)
    assert page.status_code == 200
    form = Form(page.text)
    return await box.http.post(form.action, data=form.fields | fields)


async def test_the_prefilled_page_pays_and_returns_to_the_shop(box: Box) -> None:
    session = await box.session(4999, customer_email="buyer@example.com")
    page = await box.http.get(session.url)
    form = Form(page.text)
    assert form.fields["number"] == "4242424242424242"
    assert form.fields["email"] == "buyer@example.com"
    assert form.links["cancel"] == "http://shop.example/cancelled"
    assert "Pay $49.99 USD" in page.text
    assert "<script" not in page.text
    answer = await box.http.post(form.action, data=form.fields)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"http://shop.example/done?session={session.id}"
    done = await box.v1.checkout.sessions.retrieve_async(session.id)
    assert (done.status, done.payment_status, done.url) == ("complete", "paid", None)
    assert done.customer_details.email == "buyer@example.com"
    again = await box.http.post(form.action, data=form.fields)
    assert again.headers["location"] == answer.headers["location"]
    assert "all done" in (await box.http.get(session.url)).text
    assert [entry["amount"] for entry in (await box.record())["records"]] == [4999]


async def test_the_page_is_accessible(box: Box) -> None:
    html = (await box.http.get((await box.session()).url)).text
    form = Form(html)
    assert form.ids <= form.labels
    assert '<html lang="en">' in html
    assert html.count("<h1>") == 1
    assert "<title>" in html
    assert len(html) < 8000
    declined = await submit(box, await box.session(), number="4000000000000002")
    assert 'role="alert"' in declined.text


DECLINED = [
    ({"number": "4000 0000 0000 0002"}, "Your card was declined."),
    ({"number": "4000000000009995"}, "insufficient funds"),
    ({"number": "4242424242424241"}, "card number is incorrect"),
    ({"number": "4111111111111111"}, "non test card"),
    ({"number": ""}, "card number is incorrect"),
    ({"expiry": "13/30"}, "expiration month is invalid"),
    ({"expiry": "01/20"}, "expiration year is invalid"),
    ({"expiry": "soon"}, "expiration"),
    ({"cvc": "12"}, "security code is invalid"),
    ({"method": "us_bank_account", "account": "123"}, "test bank account"),
]


@pytest.mark.parametrize(("fields", "words"), DECLINED)
async def test_refusals_are_shown_and_the_next_try_succeeds(box: Box, fields: dict[str, str], words: str) -> None:
    session = await box.session()
    refused = await submit(box, session, **fields)
    assert refused.status_code == 402
    assert words in refused.text.replace("&#x27;", "'")
    assert (await submit(box, session)).status_code == 303
    assert len((await box.record())["records"]) == 1


async def test_authentication_is_asked_for_and_can_fail_or_pass(box: Box) -> None:
    session = await box.session()
    asked = await submit(box, session, number="4000002500003155")
    assert asked.headers["location"] == f"/c/pay/{session.id}/authenticate"
    page = await box.http.get(asked.headers["location"])
    assert re.search('<button type="submit" name="result" value="pass"', page.text)
    failed = await box.http.post(asked.headers["location"], data={"result": "fail"})
    assert failed.status_code == 402
    assert "unable to authenticate" in failed.text
    asked = await submit(box, session, number="4000002500003155")
    passed = await box.http.post(asked.headers["location"], data={"result": "pass"})
    assert passed.headers["location"].startswith("http://shop.example/done")
    assert len((await box.record())["records"]) == 1
    assert (await box.http.get(asked.headers["location"])).headers["location"] == f"/c/pay/{session.id}"


async def test_a_bank_account_and_a_disputing_card_on_the_page(box: Box) -> None:
    await box.settings(async_delay_s=0.0)
    bank = await box.session()
    assert (await submit(box, bank, method="us_bank_account")).status_code == 303
    broke = await box.session()
    assert (await submit(box, broke, method="us_bank_account", account="000222222227")).status_code == 303
    disputed = await box.session()
    assert (await submit(box, disputed, number="4000000000000259")).status_code == 303
    types = await box.types()
    for name in ("async_payment_succeeded", "async_payment_failed"):
        assert types.count(f"checkout.session.{name}") == 1
    assert types.count("charge.dispute.funds_withdrawn") == 1
    assert [entry["kind"] for entry in (await box.record())["records"]] == ["paid", "paid", "disputed"]


async def test_only_the_session_s_payment_methods_are_offered(box: Box) -> None:
    page = await box.http.get((await box.session(allowed_payment_method_types=["card"])).url)
    assert "<legend>Bank account" not in page.text
    assert Form(page.text).fields["method"] == "card"
    saving = await box.session(payment_intent_data={"setup_future_usage": "off_session"})
    assert "will be saved" in (await box.http.get(saving.url)).text


async def test_names_are_escaped_and_expired_or_unknown_sessions_say_so(box: Box) -> None:
    price = {"currency": "usd", "unit_amount": 999, "product_data": {"name": "<b>Credits</b>"}}
    session = await box.session(line_items=[{"price_data": price, "quantity": 2}])
    page = await box.http.get(session.url)
    assert "&lt;b&gt;Credits" in page.text
    assert "$19.98 USD" in page.text
    await box.v1.checkout.sessions.expire_async(session.id)
    assert (await box.http.get(session.url)).status_code == 410
    assert (await box.http.get("/c/pay/cs_test_nothing")).status_code == 404
    assert (await box.http.get("/elsewhere")).status_code == 404
