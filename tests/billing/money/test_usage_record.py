"""The record of a request, and what is left of it where a part was booked before."""

import msgspec
import pytest

from billing.money.usage_record import UsageRecord, UsageRow, encode_record, rest_of

NEEDED = {
    "charge_id": "req_1",
    "account_id": "acct",
    "key_id": "key",
    "endpoint": "chat",
    "model": "gpt-4.1",
    "created_at": 1_700_000_000_000,
    "held_millicredits": 900,
    "cost_millicredits": 500,
    "usage_source": "upstream",
    "outcome": "completed",
    "rates": msgspec.Raw(b"{}"),
}
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "cost_millicredits",
    "audio_milliseconds",
    "characters",
    "web_searches",
)


def record(**parts: object) -> bytes:
    return encode_record(UsageRecord(**{**NEEDED, **parts}))  # type: ignore[arg-type]


def test_a_record_names_its_parts_as_json_does_and_leaves_out_what_is_as_usual() -> None:
    """Journals keep such records: names and defaults stay as they are, so that an older one says the same."""
    assert record() == (
        b'{"chargeId":"req_1","accountId":"acct","keyId":"key","endpoint":"chat","model":"gpt-4.1",'
        b'"createdAt":1700000000000,"heldMillicredits":900,"costMillicredits":500,"usageSource":"upstream",'
        b'"outcome":"completed","rates":{}}'
    )


def test_what_an_old_record_does_not_say_is_as_usual() -> None:
    read = msgspec.json.decode(record(), type=UsageRecord)
    said = {name: getattr(read, name) for name in UsageRecord.__struct_fields__ if name not in NEEDED}
    usual = {name: "" for name in ("billed_model", "tool_calls", "upstream_request_id", "upstream_id")}
    usual |= {name: "" for name in ("upstream", "tries", "end_user", "tags")}
    counts = {name: 0 for name in COUNTS if name != "cost_millicredits"}
    times = {"first_byte_ms": 0, "duration_ms": 0, "abandoned_millicredits": 0}
    assert said == {
        **usual, **counts, **times, "service_tier": "default", "stream": False, "free": False, "status": 200
    }  # fmt: skip
    assert UsageRow._field_defaults == {"upstream": "", "tries": "", "abandoned_millicredits": 0}


@pytest.mark.parametrize("count", COUNTS)
def test_the_rest_is_what_was_not_booked_before(count: str) -> None:
    whole, booked = dict.fromkeys(COUNTS, 10), dict.fromkeys(COUNTS, 10)
    charge_id, rest = rest_of(record(**whole), record(**{**booked, count: 7}))
    found = msgspec.json.decode(rest, type=UsageRecord)
    assert (charge_id, found.charge_id) == ("req_1-rest", "req_1-rest")
    assert {name: getattr(found, name) for name in COUNTS} == {**dict.fromkeys(COUNTS, 0), count: 3}
    assert (found.account_id, found.held_millicredits, found.outcome) == ("acct", 900, "completed")


def test_where_more_was_booked_than_there_was_nothing_is_left() -> None:
    _, rest = rest_of(record(input_tokens=3), record(input_tokens=4, cost_millicredits=501))
    found = msgspec.json.decode(rest, type=UsageRecord)
    assert (found.input_tokens, found.cost_millicredits) == (0, 0)
