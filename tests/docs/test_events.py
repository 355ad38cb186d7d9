"""docs/events.md: every kind is there, with a sample that has exactly the fields of what is told, and a check that works."""

import json
import re
from typing import Any

import pytest

from billing.ledger.events.kinds import KINDS
from billing.payments.stripe.signatures import sign_with_all
from tests.support.events import (
    buy_and_give_back,
    change_everything,
    give_and_let_expire,
    listen,
    recharge_and_store,
    told_to,
    use_up,
)
from tests.support.servers import ROOT
from tests.support.shop import Shop

PAGE = (ROOT / "docs" / "events.md").read_text()
SECTIONS = re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", PAGE, re.DOTALL | re.MULTILINE)
SAMPLES = {
    kind: [json.loads(sample) for sample in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    for head, text in SECTIONS
    for kind in head.split(", ")
}
OPTIONAL = {"fields"}
"""Fields that some kinds of a section have, and others not."""
RARE = {
    "account.updated",
    "auto_recharge.action_needed",
    "auto_recharge.ceiling",
    "auto_recharge.waiting",
    "dispute.under_review",
    "dispute.updated",
    "refund.pending",
    "refund.failed",
    "refund.canceled",
    "refund.updated",
}
"""Kinds that are made in the same place as another one of their section, and differ from it by their name alone."""


def test_every_kind_is_on_the_page_with_a_sample_and_no_other() -> None:
    assert SAMPLES.keys() == KINDS.keys()
    assert all(SAMPLES.values())


def shape(value: Any) -> Any:
    """Field names, at every depth, and the JSON type of each value; null fits any."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict) else "list"
    return type(value).__name__


def fits(told: Any, sample: Any) -> bool:
    if told in ("NoneType", "list") or sample in ("NoneType", "list"):
        return True
    if isinstance(told, dict) and isinstance(sample, dict):
        known = told.keys() ^ sample.keys() <= OPTIONAL
        return known and all(fits(told[name], sample[name]) for name in told.keys() & sample.keys())
    if isinstance(told, list) and isinstance(sample, list):
        return fits(told[0], sample[0])
    return bool(told == sample)


async def test_what_is_told_has_the_fields_of_its_sample(shop: Shop) -> None:
    endpoint = await listen(shop.books.database, "*", "usage.charged")
    for step in (change_everything, use_up, buy_and_give_back, give_and_let_expire, recharge_and_store):
        await step(shop)
    told = await told_to(shop.notices, endpoint)
    for event in told:
        assert event.keys() == {"id", "kind", "accountId", "createdAtMs", "data"}
        samples = SAMPLES[event["kind"]]
        assert any(fits(shape(event["data"]), shape(sample)) for sample in samples), event
    assert KINDS.keys() - {event["kind"] for event in told} <= RARE
    for sample in SAMPLES["balance.low"]:
        assert any(event["kind"] == "balance.low" and event["data"].keys() == sample.keys() for event in told), sample


@pytest.mark.parametrize(
    ("secrets", "age", "good"),
    [(["new", "mine"], 0, True), (["mine"], 0, True), (["other"], 0, False), (["mine"], 400, False)],
)
def test_the_pages_check_of_a_signature_works(secrets: list[str], age: int, good: bool) -> None:
    program: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), program)  # noqa: S102 - the page's own block
    now = int(program["time"].time())
    assert program["is_ours"](b"{}", sign_with_all(b"{}", secrets, now - age), "mine") is good
    assert not program["is_ours"](b"{} ", sign_with_all(b"{}", secrets, now), "mine")
