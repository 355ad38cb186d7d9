"""Forms of the ops page that are refused: each has a page to be shown on again, and words for what billing refused."""

from typing import Any, cast

import pytest

from billing.money.errors import AccountClosed, BillingError, ExternalIdTaken, InvalidDetails, KeyNotFound
from proxy.admin.auth import AdminRoute
from proxy.admin.events.api import EventsApi
from proxy.admin.events.pages import EventPages
from proxy.admin.ops_page import OpsPage, in_words, page_of_form
from proxy.admin.plans.api import PlansApi
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.promos.pages import PromoPages

NOTHING = cast("Any", None)
PAGE = OpsPage(
    NOTHING,
    NOTHING,
    PlansApi(NOTHING, NOTHING, NOTHING),
    EventPages(EventsApi(NOTHING, NOTHING, NOTHING), NOTHING),
    PromoPages(PromoCodesApi(NOTHING)),
    NOTHING,
    "http://page.test",
).table()
ELSEWHERE = {
    "/admin/accounts": "/admin",
    "/admin/jobs/run": "/admin/reconciliation",
    "/admin/accounts/{account_id}/access/rules": "/admin/accounts/{account_id}/access",
    "/admin/accounts/{account_id}/keys/rotate": "/admin/accounts/{account_id}",
    "/admin/purchases/accept": "/admin/purchases",
    "/admin/admins/invite": "/admin/admins",
    "/admin/plans": "/admin/plans",
}


@pytest.mark.parametrize("row", [row for row in PAGE if row.method == "POST"], ids=lambda row: row.path)
def test_every_form_has_a_page(row: AdminRoute) -> None:
    found = page_of_form(row, PAGE)
    assert found is not None
    if row.path in ELSEWHERE:
        assert found.path == ELSEWHERE[row.path]
    elif found.path == "/admin":
        raise AssertionError("the overview has no such form: name its page in STANDS_ON")


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (InvalidDetails("name", "be short"), 400, "name"),
        (ExternalIdTaken("x"), 409, "externalId"),
        (AccountClosed("acct_1"), 409, None),
        (KeyNotFound("key_1"), 404, None),
        (BillingError("no such thing"), 404, None),
    ],
)
def test_what_billing_refuses_is_said_in_words(error: BillingError, status: int, param: str | None) -> None:
    refusal = in_words(error)
    assert (refusal.status, refusal.param) == (status, param)
    assert refusal.message.endswith(".") or error.args[0] == refusal.message
