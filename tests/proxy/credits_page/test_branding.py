"""The operator's product on every page that customers see, and the ways back to it."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from billing.money.holds import KeyLimits, Refused
from config.settings import App
from proxy.gateway.limits.standing import short_of_money
from proxy.gateway.services import Services
from proxy.observability.metrics import Metrics
from tests.support.credits_page import visiting
from tests.support.money_api import settings
from tests.support.plans import key
from tests.support.shop import Shop

ONE_DATABASE = pytest.mark.parametrize("sql", ["sqlite"], indirect=True)
"""What is tested is no matter of SQL."""
LOGO = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9v9z"/></svg>'
APP = {
    "name": "Acme & Sons",
    "url": "https://app.test/home",
    "color": "#7a1fa2",
    "support_url": "mailto:help@app.test",
    "terms_url": "https://app.test/terms",
    "privacy_url": "https://app.test/privacy",
}


@ONE_DATABASE
async def test_every_page_carries_the_product_and_the_ways_home(shop: Shop, folder: Path) -> None:
    (folder / "logo.svg").write_text(LOGO)
    account = await shop.books.account(5_000)
    async with visiting(shop, settings(app={**APP, "logo_file": str(folder / "logo.svg")})) as visit:
        signed_out = [(await visit.client.get("/credits")).text]
        asking = await visit.client.get((await visit.link(account)).json()["url"])
        await visit.enter(asking)
        inside = [asking.text, await visit.page(), (await visit.client.get("/credits/prices")).text]
        refused = await visit.client.get("/credits/statement?month=never")
        for page in (*signed_out, *inside, refused.text):
            assert "Acme &amp; Sons</title>" in page
            assert re.search(
                r'<nav class="brand".*<a href="https://app.test/home"><img src="/credits/static/logo"', page
            )
            ways = page.partition('<nav class="ways"')[2]
            for link in ("https://app.test/home", "mailto:help@app.test", "https://app.test/terms", "app.test/privacy"):
                assert link in ways
            assert 'href="/credits/static/app.css?7a1fa2"' in page
        assert 'class="button" href="https://app.test/home">Back to Acme &amp; Sons' in signed_out[0], "no dead end"
        sheet = await visit.client.get("/credits/static/app.css?7a1fa2")
        assert "--accent: #7a1fa2" in sheet.text
        logo = await visit.client.get("/credits/static/logo")
        assert (logo.text, logo.headers["content-type"]) == (LOGO, "image/svg+xml")
        assert logo.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert logo.headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in (await visit.client.get("/credits")).headers["content-security-policy"]
        (folder / "logo.svg").write_text(LOGO.replace("<path", "<script/><path"))
        assert (await visit.client.get("/credits/static/logo")).status_code == 404, "a file that was changed since"


@ONE_DATABASE
async def test_settings_are_live_and_without_them_nothing_is_said(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert 'class="brand"' not in page
        assert 'class="ways"' not in page
        assert "app.css" not in page
        assert (await visit.client.get("/credits/static/logo")).status_code == 404
        money = visit.money
        money.settings = msgspec.structs.replace(money.settings, app=App(name="Later Ltd"))
        assert "Later Ltd</title>" in await visit.page()


def test_the_402_leads_home() -> None:
    services = cast(
        "Services",
        SimpleNamespace(metrics=Metrics(CollectorRegistry()), absolute=lambda path: f"https://meter.test{path}"),
    )
    nothing = Refused("balance", 0, 0)
    member = key(member=True)
    for holder in (key(), member):
        refused = short_of_money(services, settings(app=APP), KeyLimits(), nothing, 5_000, key=holder)
        body = msgspec.json.decode(refused.body())
        assert refused.status == 402
        for level in (body, body["error"]):
            assert (level["appUrl"], level["supportUrl"]) == ("https://app.test/home", "mailto:help@app.test")
            assert level["topUpUrl"] == "https://meter.test/credits"
    plain = msgspec.json.decode(short_of_money(services, settings(), KeyLimits(), nothing, 5_000, key=member).body())
    assert not {"appUrl", "supportUrl"} & plain.keys()
