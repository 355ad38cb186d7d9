"""The customers' page in Chromium: `tollkeeper serve` with a made-up OpenAI and Stripe behind it, clicked, typed and tabbed through."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from openai import APIStatusError, OpenAI
from playwright.sync_api import BrowserContext, Page, expect

from proxy.web.display import short_credits
from tests.browser.conftest import Town
from tests.browser.visits import PHONE, TIME_ZONE, Visits, look, tab_stops, tab_to
from tests.support.customers import Customer
from tests.support.servers import wait_until

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "tell me of toll roads"}], "max_tokens": 60}
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40"><circle cx="20" cy="20" r="18" fill="#7a1fa2"/></svg>'
)
BRAND = """[app]
name = "Acme"
url = "https://app.example.com"
logo_file = "logo.svg"
color = "#7a1fa2"
dark_color = "#d7a6f0"
support_url = "mailto:help@example.com"
terms_url = "https://example.com/terms"
"""
GONE = "This link has been used or is too old"


def enter(page: Page, town: Town, customer: Customer, *, by_hand: bool = False) -> Page:
    """Follow a link; `by_hand`: without a script the button is pressed."""
    page.goto(town.link(customer))
    if by_hand:
        page.get_by_role("button", name="Open my credits").click()
    page.wait_for_url("**/credits")
    expect(page.get_by_role("heading", name="Credits", exact=True)).to_be_visible()
    return page


def pay(page: Page, number: str = "4242 4242 4242 4242") -> None:
    """On the made-up Stripe's page."""
    page.wait_for_url("**/c/pay/**")
    page.get_by_label("Email").fill("buyer@app.test")
    page.get_by_label("Name on card").fill("A. Buyer")
    page.get_by_label("Card number").fill(number)
    page.locator("#pay").click()


def buy(page: Page, usd: str, *, save: bool = False) -> None:
    """Click a package, pay, and come back."""
    if save:
        page.get_by_role("checkbox", name="Save").check()
    page.get_by_role("button", name=f"Buy for ${usd}").click()
    pay(page)
    page.wait_for_url("**/credits?session=*")
    expect(page.get_by_role("status").first).to_contain_text("credits were added to your balance", timeout=15_000)


def available(page: Page) -> str:
    return page.locator("#available").inner_text()


def cookie(context: BrowserContext) -> Any:
    (found,) = [one for one in context.cookies() if one["name"] == "tk_session"]
    return found


@pytest.fixture(scope="module")
def busy(town: Town) -> Customer:
    """A customer with more requests than a page shows, as the upstream's own record counts them."""
    customer = town.customer(3_000_000)
    for number in range(23):
        answer = customer.chat(
            "words " * number, model=("gpt-4o-mini", "gpt-4.1", "gpt-4o")[number % 3], max_tokens=20 + number
        )
        assert answer.status_code == 200
    town.cli("drain")
    return customer


# -- money ----------------------------------------------------------------------------------------------------


def test_buying_by_clicks_raises_the_balance_by_what_stripe_took(town: Town, visits: Visits) -> None:
    customer = town.customer()
    page = enter(visits.window(), town, customer)
    assert available(page) == "0"
    expect(page.get_by_text("You have no credits left")).to_be_visible()
    before = len(town.paid()["records"])
    buy(page, "99.99")
    expect(page.get_by_role("status").first).to_have_text("Thank you. 109,989 credits were added to your balance.")
    wait_until(lambda: page.reload() and available(page) == "109,989", 5, "the balance has risen")
    expect(page.locator("#usd")).to_have_text("$109.99")
    customer.wait_balance(109_989_000)
    (movement,) = town.paid()["records"][before:]
    assert (movement["kind"], movement["amount"], movement["currency"]) == ("paid", 9_999, "usd")
    row = (
        page.get_by_role("region", name="Purchases")
        .or_(page.locator("section[aria-labelledby=purchases]"))
        .get_by_role("row")
        .nth(1)
    )
    expect(row).to_contain_text("credited")
    expect(row).to_contain_text("$99.99")
    with page.expect_navigation():
        row.get_by_role("link", name="Receipt").click()
    assert page.url.startswith(town.stripe)
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
    page.go_back()
    look(page)


def test_a_declined_card_says_so_and_nothing_is_added(town: Town, visits: Visits) -> None:
    page = enter(visits.window(), town, town.customer(5_000))
    page.get_by_role("button", name="Buy for $9.99").click()
    pay(page, "4000 0000 0000 0002")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    page.wait_for_url("**/credits")
    assert available(page) == "5"
    expect(page.locator("section[aria-labelledby=purchases]").get_by_role("row").nth(1)).to_contain_text("not paid")


def test_running_out_topping_up_from_the_402_and_going_on(town: Town, visits: Visits) -> None:
    customer = town.customer(20)
    page = enter(visits.window(), town, customer)
    client = OpenAI(base_url=town.server.v1, api_key=customer.api_key, max_retries=0)
    with pytest.raises(APIStatusError) as refused:
        for _ in range(10):
            client.chat.completions.create(**ASK)
    assert refused.value.status_code == 402
    body: Any = refused.value.response.json()
    page.goto(body["topUpUrl"])
    assert available(page) == f"{body['availableCredits']:,}"
    buy(page, "9.99")
    wait_until(lambda: customer.balance() > 9_990_000 - 20, 5, "topped up")
    assert client.chat.completions.create(**ASK).choices[0].message.content
    client.close()


def test_switched_off_purchases_while_the_server_runs(town: Town, visits: Visits) -> None:
    page = enter(visits.window(), town, town.customer(5_000))
    button = page.get_by_role("button", name="Buy for $9.99")
    expect(button).to_be_enabled()
    town.configure("[billing]\nauto_recharge = true\npurchase_enabled = false\n")
    try:
        wait_until(lambda: page.reload() and button.is_disabled(), 5, "the buttons are greyed")
        expect(page.get_by_role("status").first).to_have_text(
            "Buying credits is paused right now. Your credits keep working."
        )
        expect(page.get_by_role("button", name="Buy for $99.99")).to_be_disabled()
        look(page)
        # a page opened before is refused, in words
        page.evaluate("document.querySelectorAll('button[disabled]').forEach((one) => one.disabled = false)")
        button.click()
        expect(page.get_by_role("heading", name="Purchases are off")).to_be_visible()
        look(page)
    finally:
        town.configure("[billing]\nauto_recharge = true\n")
    wait_until(lambda: page.goto(f"{town.server.url}/credits") and button.is_enabled(), 5, "and bought again")
    expect(page.get_by_text("paused right now")).to_have_count(0)


def test_automatic_recharge_from_the_saved_card_to_the_charge(town: Town, visits: Visits) -> None:
    customer = town.customer(5_000)
    page = enter(visits.window(), town, customer)
    section = page.locator("section[aria-labelledby=recharge]")
    expect(section).to_contain_text("Buy a package once")
    buy(page, "9.99", save=True)
    expect(section).to_contain_text("Off")
    section.get_by_label("When the balance falls below").fill("9990")
    section.get_by_label("Buy", exact=True).select_option("starter")
    section.get_by_label("But never more a month than").fill("20.00")
    section.get_by_role("button", name="Switch on").click()
    expect(section.get_by_text("Tick the box that allows us to charge your saved card.")).to_be_visible()
    expect(section.get_by_role("checkbox")).to_be_focused()
    expect(section.get_by_label("But never more a month than")).to_have_value("20.00")
    look(page)
    section.get_by_label("When the balance falls below").fill("99999")
    section.get_by_role("checkbox").check()
    section.get_by_role("button", name="Switch on").click()
    threshold = section.get_by_label("When the balance falls below")
    expect(threshold).to_be_focused()
    expect(threshold).to_have_value("99999")
    expect(threshold).to_have_accessible_description(re.compile("at most what the package brings"))
    look(page)
    threshold.fill("9,980")
    section.get_by_label("But never more a month than").fill("20.00")
    section.get_by_role("checkbox").check()
    section.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("status").first).to_have_text("Automatic recharge is on.")
    expect(section.get_by_label("When the balance falls below")).to_have_value("9980")
    look(page)
    # 9,995 credits; 20 of them spent cross the threshold, and the saved card is charged
    for _ in range(8):
        assert customer.chat("count " * 1_200, model="gpt-4o", max_tokens=40).status_code == 200
    wait_until(lambda: customer.balance() > 15_000_000, 20, "recharged")
    section.get_by_role("button", name="Switch off").click()
    expect(page.get_by_text("Automatic recharge is off.")).to_be_visible()
    expect(page.locator("section[aria-labelledby=purchases]").get_by_role("row")).to_have_count(3)
    expect(page.locator("#card")).to_have_text("Visa ending in 4242")
    section.get_by_text("Remove the card").click()
    look(page)
    section.get_by_role("button", name="Remove this card").click()
    expect(page.get_by_text("The card is removed")).to_be_visible()
    expect(section).to_contain_text("Buy a package once")
    expect(page.locator("#card")).to_have_count(0)


# -- keys -----------------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_once_limited_and_revoked(town: Town, visits: Visits) -> None:
    customer = town.customer(50_000)
    page = enter(visits.window(permissions=["clipboard-read", "clipboard-write"]), town, customer)
    form = page.locator("form[action='/credits/keys']")
    form.get_by_label("Spend limit in credits").fill("0.1")
    form.get_by_label("The limit starts anew every").select_option("day")
    form.get_by_label("Held by").select_option("a team member")
    page.get_by_role("button", name="Create a key").click()
    secret = page.locator("#new-key").inner_text()
    assert re.fullmatch(r"tk-[\w-]{43}", secret)
    expect(page.get_by_text(f"{town.server.url}/v1")).to_be_visible()
    page.get_by_role("button", name="Copy the key").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    look(page)
    page.get_by_role("link", name="Back to your credits").click()
    assert secret not in page.content()
    row = page.locator("section[aria-labelledby=keys]").get_by_role("row").filter(has_text=f"{secret[:8]}")
    expect(row).to_contain_text("0.1 a day")
    expect(row).to_contain_text("a member's")
    made = Customer(town.server, customer.account_id, secret)
    assert made.chat("hello", max_tokens=16).status_code == 200
    refused = made.chat("hello " * 300, max_tokens=600)
    assert (refused.status_code, refused.json()["limitSource"]) == (402, "key_limit")
    row.get_by_text("Revoke", exact=False).first.click()
    expect(row).to_contain_text("This cannot be undone.")
    look(page)
    row.get_by_role("button", name="Revoke this key").click()
    expect(page.get_by_role("status").first).to_contain_text("The key is revoked.")
    expect(row).to_contain_text("revoked")
    wait_until(lambda: made.chat("hello", max_tokens=16).status_code == 401, 8, "it stops working")
    form.get_by_label("Name").fill("the website")
    form.get_by_label("Spend limit in credits").fill("a lot")
    page.get_by_role("button", name="Create a key").click()
    limit = form.get_by_label("Spend limit in credits")
    expect(limit).to_be_focused()
    expect(limit).to_have_value("a lot")
    expect(limit).to_have_accessible_description(re.compile("not a number we understand"))
    expect(form.get_by_label("Name")).to_have_value("the website")
    look(page)


# -- what is shown --------------------------------------------------------------------------------------------


def test_activity_pages_through_to_the_last_row(town: Town, visits: Visits, busy: Customer) -> None:
    page = enter(visits.window(), town, busy)
    wanted = [row["requestId"] for row in town.cli("usage", busy.account_id, "--limit", "100")["data"]]
    assert len(wanted) == 23
    granted = town.cli("ledger", busy.account_id, "--limit", "100")["data"][-1]["referenceId"]
    rows = page.locator("section[aria-labelledby=activity] tbody tr code")
    for start in ("everything", "requests"):
        if start == "requests":
            page.get_by_role("link", name="Requests alone").click()
            expect(page.get_by_role("heading", name="Requests", exact=True)).to_be_visible()
        seen = rows.all_inner_texts()
        assert len(seen) == 20
        page.get_by_role("link", name="Older", exact=True).click()
        expect(page.get_by_role("link", name="Newest", exact=True)).to_be_visible()
        seen += rows.all_inner_texts()
        expect(page.get_by_role("link", name="Older", exact=True)).to_have_count(0)
        grant = [] if start == "requests" else [granted]
        assert sorted(seen) == sorted([*wanted, *grant]), "and the grant, whose reason is internal"
        page.get_by_role("link", name="Newest", exact=True).click()
        expect(page.get_by_role("link", name="Older", exact=True)).to_be_visible()
    page.goto(f"{town.server.url}/credits?show=requests&older=nonsense")
    expect(page.get_by_role("heading", name="That did not work")).to_be_visible()


def test_usage_is_filtered_by_model_and_downloaded(town: Town, visits: Visits, busy: Customer, folder: Path) -> None:
    page = enter(visits.window(), town, busy)
    usage = page.locator("section[aria-labelledby=usage]")
    usage.get_by_label("Model", exact=True).select_option("gpt-4o")
    usage.get_by_role("button", name="Show").click()
    expect(usage.get_by_label("Model", exact=True)).to_have_value("gpt-4o")
    table = usage.locator("table.sums tbody tr")
    expect(table).to_have_count(1)
    expect(table.first).to_contain_text("gpt-4o")
    listed = page.locator("section[aria-labelledby=activity] tbody tr .what").all_inner_texts()
    assert set(listed) == {"gpt-4o"}
    look(page)
    with page.expect_download() as started:
        usage.get_by_role("link", name="These requests as CSV").click()
    started.value.save_as(folder / "usage.csv")
    assert len((folder / "usage.csv").read_text().splitlines()) == 1 + len(listed)
    usage.get_by_role("link", name="Show everything").click()
    expect(table).to_have_count(3)
    page.get_by_role("link", name="Prices").click()
    page.get_by_label("Part of a model's name").fill("gpt-4.1-mini")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row", name="gpt-4.1-mini 400 100 1,600")).to_be_visible()
    look(page)


def test_the_chart_shows_what_was_charged_on_wide_and_narrow_windows(
    town: Town, visits: Visits, busy: Customer
) -> None:
    charged: dict[str, int] = {}
    for row in town.cli("usage", busy.account_id, "--limit", "100")["data"]:
        charged[row["model"]] = charged.get(row["model"], 0) + int(row["chargedMillicredits"])
    for options, shown, other in (({}, "wide", "narrow"), ({"viewport": PHONE}, "narrow", "wide")):
        page = enter(visits.window(**options), town, busy)
        expect(page.locator(f"svg.{other}")).to_be_hidden()
        titles = page.locator(f"svg.{shown} rect title").all_text_contents()
        assert len(titles) == 3
        for model, amount in charged.items():
            assert any(f" {model}: {short_credits(amount)} credits" in title for title in titles), titles
        smallest = page.evaluate(
            """(name) => Math.min(...[...document.querySelectorAll(`svg.${name} text`)].map((one) => one.getBoundingClientRect().height))""",
            shown,
        )
        assert smallest >= 11, "too small to read"
        # three models are three hatchings, so colour is not needed to tell them apart
        assert (
            len({one for one in page.locator("pattern").evaluate_all("(all) => all.map((one) => one.innerHTML)")}) == 3
        )
    page.get_by_text("The same as a table").click()
    assert len(page.locator("#by-day tbody tr").all()) == 3


def test_times_are_the_viewers(town: Town, visits: Visits, busy: Customer) -> None:
    page = enter(visits.window(), town, busy)
    shown = page.locator("section[aria-labelledby=activity] time").first
    moment = datetime.fromisoformat(shown.get_attribute("datetime") or "").astimezone(ZoneInfo(TIME_ZONE))
    assert f"{moment:%H:%M}" in shown.inner_text()
    assert moment.utcoffset() != datetime.now(UTC).utcoffset()
    expect(page.get_by_role("contentinfo")).to_contain_text("Times are shown in Asia/K")
    plain = enter(visits.window(java_script_enabled=False), town, busy, by_hand=True)
    text = plain.locator("section[aria-labelledby=activity] time").first.inner_text()
    assert text.endswith("UTC")


def test_the_statement_downloads(town: Town, visits: Visits, busy: Customer, folder: Path) -> None:
    page = enter(visits.window(), town, busy)
    files = {}
    for kind in ("csv", "pdf"):
        page.get_by_label("Format").select_option(kind)
        with page.expect_download() as started:
            page.get_by_role("button", name="Download the statement").click()
        month = time.strftime("%Y-%m", time.gmtime())
        assert started.value.suggested_filename == f"statement-{month}.{kind}"
        started.value.save_as(folder / kind)
        files[kind] = (folder / kind).read_bytes()
    assert files["pdf"].startswith(b"%PDF-")
    assert b"gpt-4.1" in files["csv"]


# -- who may see it -------------------------------------------------------------------------------------------


def test_one_customer_sees_nothing_of_another(town: Town, visits: Visits, busy: Customer) -> None:
    other = town.customer(7_000)
    link = town.link(other)
    mine, theirs = enter(visits.window(), town, busy), visits.window()
    theirs.goto(link)
    assert available(theirs) == "7"
    expect(theirs.get_by_text("Nothing was spent in the last 30 days.")).to_be_visible()
    for trace in (busy.account_id, *mine.locator("section[aria-labelledby=activity] code").all_inner_texts()[:3]):
        assert trace not in theirs.content()
    # their browser, another's link: asked for, the session is then the other's; and the used link opens nothing
    mine.goto(town.link(other))
    expect(mine.get_by_text("what you buy would be theirs")).to_be_visible()
    look(mine)
    mine.get_by_role("button", name="Open them instead").click()
    assert available(mine) == "7"
    late = visits.window()
    late.goto(link)
    expect(late.get_by_role("heading", name=GONE)).to_be_visible()
    look(late)
    late.goto(f"{town.server.url}/credits")
    expect(late.get_by_role("heading", name="Please sign in")).to_be_visible()
    look(late)


def test_forms_without_their_token_and_from_elsewhere_are_refused(town: Town, visits: Visits) -> None:
    customer, other = town.customer(5_000), town.customer(5_000)
    page, theirs = enter(visits.window(), town, customer), enter(visits.window(), town, other)
    stolen = theirs.locator("form[action='/credits/keys'] input[name=csrf]").get_attribute("value")
    for token in ("", "0" * 64, stolen):
        page.goto(f"{town.server.url}/credits")
        page.evaluate(
            "(token) => { document.querySelector(\"form[action='/credits/keys'] input[name=csrf]\").value = token; }",
            token,
        )
        page.get_by_role("button", name="Create a key").click()
        expect(page.get_by_text("This form has expired. Open the page again.")).to_be_visible()
    page.goto(f"{town.server.url}/credits")
    page.evaluate("document.querySelector(\"form[action='/credits/keys'] input[name=csrf]\").remove()")
    page.get_by_role("button", name="Create a key").click()
    expect(page.get_by_text("This form has expired.")).to_be_visible()
    # another site that knows the token, by a form that submits itself: the cookie is not even sent
    token = enter(page, town, customer).locator("input[name=csrf]").first.get_attribute("value")
    target = f"{town.server.url}/credits/keys"
    page.route(
        "http://localhost:1/evil",
        lambda route: route.fulfill(
            body=f'<form method="post" action="{target}"><input name="csrf" value="{token}"><button>win</button></form>',
            content_type="text/html",
        ),
    )
    page.goto("http://localhost:1/evil")
    page.get_by_role("button").click()
    page.wait_for_url(target)
    expect(page.locator("#new-key")).to_have_count(0)
    assert len(town.cli("key", "list", customer.account_id)["data"]) == 1
    page.goto(f"{town.server.url}/credits")
    expect(page.locator("section[aria-labelledby=keys] tbody tr")).to_have_count(1)


def test_the_session_is_a_cookie_no_script_reads_and_signing_out_ends_it(town: Town, visits: Visits) -> None:
    customer = town.customer(5_000)
    page = enter(visits.window(), town, customer)
    kept = cookie(page.context)
    assert (kept["httpOnly"], kept["sameSite"], kept["path"]) == (True, "Lax", "/credits")
    assert page.evaluate("document.cookie") == ""
    assert "token" not in page.url
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Signed out")).to_be_visible()
    page.context.add_cookies([kept])
    page.goto(f"{town.server.url}/credits")
    expect(page.get_by_role("heading", name="Please sign in")).to_be_visible()


def test_the_policy_lets_nothing_in_from_elsewhere(town: Town, visits: Visits) -> None:
    page = enter(visits.window(), town, town.customer(5_000))
    for attempt in (
        "const one = document.createElement('script'); one.textContent = 'window.pwned = 1'; document.body.append(one)",
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://evil.example/a.png\"><p style=\"color:red\">x</p>')",
    ):
        page.evaluate(attempt)
    wait_until(lambda: len(page.evaluate("window.refused")) >= 3, 5, "the policy refuses")
    assert page.evaluate("window.pwned === undefined")
    assert any("script-src" in one for one in page.evaluate("window.refused"))
    visits.errors.clear()  # those were asked for


# -- for everybody --------------------------------------------------------------------------------------------


def test_everything_is_reached_and_used_by_keyboard(town: Town, visits: Visits) -> None:
    customer = town.customer(5_000)
    page = enter(visits.window(), town, customer)
    stops = tab_stops(page)
    assert stops[0] == "a Skip to the content"
    wanted = [
        "button Sign out",
        "a Buy",
        "button Buy for $9.99",
        "button Buy for $99.99",
        "input Save the card for automatic recharge",
    ]
    wanted += [
        "select Month (UTC)",
        "button Download the statement",
        "input Spend limit in credits",
        "button Create a key",
    ]
    assert [stop for stop in stops if stop in wanted] == wanted, stops
    assert any(stop.startswith("summary Revoke") for stop in stops)
    interactive = page.locator(
        "a[href]:visible, button:visible:enabled, input:visible, select:visible, summary:visible"
    ).count()
    # a field for a day is several stops: day, month, year and the calendar
    once = [stop for number, stop in enumerate(stops) if number == 0 or stop != stops[number - 1]]
    assert len(once) == interactive, "nothing is passed over"
    tab_to(page, "Buy for $9.99")
    page.keyboard.press("Enter")
    page.wait_for_url("**/c/pay/**")
    tab_to(page, "Email")
    page.keyboard.type("buyer@app.test")
    page.keyboard.press("Tab")
    page.keyboard.type("A. Buyer")
    page.keyboard.press("Enter")
    page.wait_for_url("**/credits?session=*")
    expect(page.get_by_role("status").first).to_contain_text("were added", timeout=15_000)
    tab_to(page, "Spend limit in credits")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    expect(page.locator("#new-key")).to_be_visible()
    tab_to(page, "Back to your credits")
    page.keyboard.press("Enter")
    page.wait_for_url("**/credits")
    summaries = page.locator("section[aria-labelledby=keys] summary")
    tab_to(page, " ".join(summaries.first.inner_text().split()))
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The key is revoked.")).to_be_visible()


LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {},
    "dark phone": {"viewport": PHONE, "color_scheme": "dark"},
    "forced colours, four times as large": {"viewport": {"width": 320, "height": 256}, "forced_colors": "active"},
}


@pytest.mark.parametrize("options", LOOKS.values(), ids=LOOKS.keys())
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    options: dict[str, Any], town: Town, visits: Visits, busy: Customer
) -> None:
    page = enter(visits.window(**options), town, busy)
    for summary in page.locator("summary").all():
        summary.click()
    look(page)
    page.locator("form[action='/credits/keys']").get_by_label("Spend limit in credits").fill("a lot")
    page.get_by_role("button", name="Create a key").click()
    expect(page.get_by_role("alert")).to_be_visible()
    look(page)
    page.goto(f"{town.server.url}/credits/prices")
    look(page)
    page.goto(town.link(town.customer()))
    look(page)
    page.get_by_role("button").click()
    page.wait_for_url("**/credits")
    look(page)


def test_the_operators_product_is_on_the_page_within_the_policy(town: Town, visits: Visits) -> None:
    (town.server.folder / "logo.svg").write_text(LOGO)
    page = visits.window()
    town.configure("[billing]\nauto_recharge = true\n" + BRAND)
    try:
        wait_until(
            lambda: page.goto(f"{town.server.url}/credits") and page.locator(".brand").count() == 1, 5, "it is live"
        )
        look(page)
        expect(page.get_by_role("link", name="Back to Acme").first).to_have_attribute("href", "https://app.example.com")
        enter(page, town, town.customer(5_000))
        assert page.locator(".brand img").evaluate("(one) => one.naturalWidth") > 0, "the logo is drawn"
        button = page.get_by_role("button", name="Buy for $9.99")
        color = "(one) => getComputedStyle(one).backgroundColor"
        assert button.evaluate(color) == "rgb(122, 31, 162)"
        look(page)
        page.emulate_media(color_scheme="dark")
        assert button.evaluate(color) == "rgb(215, 166, 240)"
        look(page)
        page.set_viewport_size({"width": 390, "height": 800})
        look(page)
        town.configure(
            "[billing]\nauto_recharge = true\n" + BRAND.replace("logo.svg", "gone.svg").replace("Acme", "Other")
        )
        wait_until(lambda: "app.logo_file" in town.server.log(), 5, "an edit with a logo that is none is refused")
        page.reload()
        expect(page.locator(".brand")).to_have_text("Acme")
    finally:
        town.configure("[billing]\nauto_recharge = true\n")


def test_states_are_told_without_colour(town: Town, visits: Visits, busy: Customer) -> None:
    page = enter(visits.window(), town, busy)
    marks = page.evaluate(
        """() => ["good", "warn", "bad", "off"].map((look) => {
          const one = document.createElement("span");
          one.className = `state ${look}`;
          document.querySelector("main").append(one);
          return getComputedStyle(one, "::before").content;
        })"""
    )
    assert len(set(marks)) == 4, "each state has a mark of its own, and its word"
    button = page.get_by_role("button", name="Buy for $9.99")
    style = "(one) => { one.disabled = true; return getComputedStyle(one).borderStyle; }"
    assert button.evaluate("(one) => getComputedStyle(one).borderStyle") != button.evaluate(style)
