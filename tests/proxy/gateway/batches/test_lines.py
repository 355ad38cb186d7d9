"""Lines of a batch, planned: in order, each by the plan of a live request, and what is sent in their place."""

import json
from typing import Any, cast

import pytest

from billing.ledger.accounts import ApiKey
from billing.money.pricing import PriceBook, load_catalogue
from config.settings import Holds, Settings
from proxy.gateway.batches.lines import AT_ONCE, MOST_LINES, BatchTerms, PlannedBatch, endpoint_of, plan_lines
from proxy.gateway.bodies.parsed import Parsed, StoredContext
from proxy.gateway.plan import make_plan
from proxy.gateway.upstream.tenants import Tenants
from proxy.web.rejections import Rejection
from tests.support.counting import TOKENIZER
from tests.support.plans import PRICES, TODAY, key

CHAT = "/v1/chat/completions"


class Objects:
    """Tenants that know every object, each of so many tokens."""

    asked: int = 0

    async def context(
        self, _account: str, _references: Any, _model: str = "", *, storing: bool = True
    ) -> StoredContext:
        assert storing
        self.asked += 1
        return StoredContext(10_000)

    def identifier(self, account_id: str, _value: bytes) -> str:
        return f"tk_{account_id}"


def row(name: str, endpoint: str = CHAT, **body: Any) -> str:
    said = {"messages": [{"role": "user", "content": "hello"}]} if endpoint == CHAT else {"input": "hello"}
    return json.dumps(
        {"custom_id": name, "method": "POST", "url": endpoint, "body": {"model": "gpt-4.1", **said, **body}}
    )


def terms(endpoint: str = CHAT, settings: Settings | None = None, api_key: ApiKey | None = None) -> BatchTerms:
    return BatchTerms("acct_1", api_key or key(), settings or Settings(), PRICES, endpoint_of(endpoint))


async def planned(
    *rows: str, end: str = "\n", of: BatchTerms | None = None, counted: bool = False, objects: Objects | None = None
) -> PlannedBatch:
    tenants = cast("Tenants", objects or Objects())
    return await plan_lines(end.join(rows).encode(), of or terms(), tenants, TOKENIZER if counted else None)


async def refused(*rows: str, of: BatchTerms | None = None) -> Rejection:
    with pytest.raises(Rejection) as found:
        await planned(*rows, of=of)
    return found.value


async def test_the_hold_is_the_sum_of_the_lines_own_worst_cases() -> None:
    one = await planned(row("a", max_completion_tokens=100))
    two = await planned(row("a", max_completion_tokens=100), row("b", max_completion_tokens=1_000))
    assert two.lines == 2
    assert two.amount - one.amount == one.amount + 900 * 4 + 1  # gpt-4.1 in batches: 4 a token, and a digit more
    assert two.cost == two.amount


async def test_a_batch_is_held_for_at_half_of_a_live_requests_price() -> None:
    from tests.support.plans import plan

    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 100}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body})
    assert (await planned(line)).amount == -(-plan(body).ceiling.amount // 2)


async def test_a_line_without_a_cap_is_held_for_by_the_operators_and_sent_with_it() -> None:
    settings = Settings(holds=Holds(default_max_output_tokens=500))
    found = await planned(row("a"), of=terms(settings=settings))
    assert json.loads(found.data)["body"]["max_completion_tokens"] == 500
    assert found.amount < 500 * 4 + 200
    whole = await planned(row("a"))
    assert "max_completion_tokens" not in json.loads(whole.data)["body"]  # the model's own maximum is the bound
    assert whole.amount > 32_768 * 4


async def test_what_is_sent_is_each_line_anew() -> None:
    rows = (row("ä", user="me", service_tier="auto"), "  ", row("b"), "")
    found = await planned(*rows, end="\r\n")
    sent = [json.loads(line) for line in found.data.splitlines()]
    assert [one["custom_id"] for one in sent] == ["ä", "b"]
    assert sent[0]["body"]["user"] == "tk_acct_1"
    assert "service_tier" not in sent[1]["body"]  # a batch has none
    assert all(one["method"] == "POST" and one["url"] == CHAT for one in sent)


async def test_lines_of_responses_are_not_stored() -> None:
    found = await planned(row("a", "/v1/responses"), of=terms("/v1/responses"))
    assert json.loads(found.data)["body"]["store"] is False


async def test_a_byte_order_mark_and_white_space_inside_of_a_line_are_no_part_of_it() -> None:
    line = row("a").replace(": ", ":\r ")
    found = await planned("\ufeff" + line)
    assert (found.lines, b"\r" in found.data) == (1, False)


async def test_what_a_line_refers_to_is_held_for() -> None:
    objects = Objects()
    body = {"previous_response_id": "resp_1", "max_output_tokens": 16}
    alone = await planned(row("a", "/v1/responses", max_output_tokens=16), of=terms("/v1/responses"))
    found = await planned(row("a", "/v1/responses", **body), of=terms("/v1/responses"), objects=objects)
    assert objects.asked == 1
    assert found.amount > alone.amount + 10_000


STORES = {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 2}
SEARCHED = {"tools": [STORES], "max_tool_calls": 3, "max_output_tokens": 16}


class Places(Objects):
    """Tenants whose objects are all kept at one upstream, and whose files are cut into pieces of 800 tokens."""

    async def context(self, _account: str, references: Any, _model: str = "", *, storing: bool = True) -> StoredContext:
        assert (references[0].kind, references[0].id, storing) == ("vector_store", "vs_1", True)
        return StoredContext(0, chunk_tokens=800, upstreams=frozenset(("spare",)))


async def test_a_file_search_is_held_for_at_its_full_price_and_what_it_finds_at_half() -> None:
    searching = terms("/v1/responses")
    found = await planned(row("a", "/v1/responses", **SEARCHED), of=searching, objects=Places())
    body = json.dumps({"model": "gpt-4.1", "input": "hello", **SEARCHED}).encode()
    parsed = searching.endpoint.parse(body, b"application/json")
    stored = StoredContext(0, chunk_tokens=800)
    live = make_plan(searching.endpoint, parsed, key(), PRICES, Settings(), stored, today=TODAY).ceiling.amount
    calls = 3 * 2_500  # millicredits, in a batch as anywhere
    assert found.amount == -(-(live - calls) // 2) + calls
    assert json.loads(found.data)["body"]["max_tool_calls"] == 3


async def test_what_a_line_names_must_be_kept_where_the_batch_runs() -> None:
    def refuse_elsewhere(_parsed: Parsed, context: StoredContext) -> None:
        if context.upstreams:
            raise Rejection(409, "objects_apart", "It is kept elsewhere.")

    line = row("a", "/v1/responses", **SEARCHED)
    checked = terms("/v1/responses")._replace(check_place=refuse_elsewhere)
    with pytest.raises(Rejection) as found:
        await planned(row("x", "/v1/responses"), line, of=checked, objects=Places())
    assert (found.value.status, found.value.code, found.value.message[:7]) == (409, "objects_apart", "line 2:")


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "image_generation"},
        {"type": "programmatic_tool_calling"},
    ],
    ids=lambda tool: str(tool["type"]),
)
@pytest.mark.parametrize("nested", [False, True], ids=["of the line", "in an item"])
async def test_a_tool_without_a_price_in_a_batch_is_refused(tool: dict[str, Any], nested: bool) -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [tool]}
    body = {"input": [item, {"role": "user", "content": "hello"}]} if nested else {"tools": [tool, STORES]}
    found = await refused(row("a", "/v1/responses", **body), of=terms("/v1/responses"))
    assert (found.status, found.code) == (400, "unsupported_tool")
    assert tool["type"] in found.message


async def test_text_is_counted_when_it_is_asked_for() -> None:
    line = row("a", messages=[{"role": "user", "content": "word " * 1_000}], max_completion_tokens=16)
    assert (await planned(line, counted=True)).amount * 3 < (await planned(line)).amount


async def test_the_first_line_that_is_refused_is_told_whatever_is_wrong_with_it() -> None:
    """One that no plan is made of does not hide behind one that is no JSON, though that is found earlier."""
    unpriced = row("c", model="gpt-nothing")
    assert (await refused(row("a"), row("b"), unpriced, "{")).message.startswith("line 3: ")
    assert (await refused(row("a"), "{", unpriced)).message.startswith("line 2: ")
    many = [row(f"l{number}") for number in range(AT_ONCE * 2)]
    assert (await refused(*many, "{")).message.startswith(f"line {AT_ONCE * 2 + 1}: ")


async def test_a_refusal_keeps_its_status_code_and_member() -> None:
    found = await refused(row("a"), row("b", temperature_of_the_room=3))
    assert (found.status, found.code, found.param) == (400, "unknown_parameter", "temperature_of_the_room")


async def test_a_key_uses_its_own_models_in_batches_too() -> None:
    found = await refused(row("a"), of=terms(api_key=key(models=("gpt-5*",))))
    assert (found.status, found.code) == (404, "model_not_found")


async def test_a_batch_has_at_most_fifty_thousand_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LINES == 50_000
    monkeypatch.setattr("proxy.gateway.batches.lines.MOST_LINES", 3)
    found = await refused(*(row(f"l{number}") for number in range(4)))
    assert (found.code, found.message[:7]) == ("too_many_lines", "line 4:")


@pytest.mark.parametrize("name", ["/v1/images/generations", "/v1/moderations", "/v1/files", 5, ["x"]])
def test_an_endpoint_without_batch_prices_is_refused(name: Any) -> None:
    with pytest.raises(Rejection) as found:
        endpoint_of(name)
    assert found.value.param == "endpoint"


async def test_prices_are_those_of_the_book_that_is_in_force() -> None:
    double = PriceBook(load_catalogue(), "2", "exact")
    line = row("a", max_completion_tokens=100)
    doubled = await planned(line, of=terms()._replace(prices=double))
    single = await planned(line)
    assert doubled.cost == single.cost
    assert 2 * single.amount - 1 <= doubled.amount <= 2 * single.amount


def test_what_stands_in_for_the_tenants_has_what_they_have() -> None:
    assert all(hasattr(Tenants, name) for name in ("context", "identifier"))
