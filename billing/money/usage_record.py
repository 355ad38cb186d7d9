"""One metered request: the record that is journalled when it settles, and the row that SQL keeps of it."""

from typing import Literal, NamedTuple

import msgspec

UsageSource = Literal["upstream", "counted", "bounded"]
Outcome = Literal["completed", "client_gone", "upstream_cut", "upstream_error", "insured", "orphaned", "shutdown"]


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One metered request. Times are Unix milliseconds, amounts millicredits, counts tokens.

    `charge_id` is the request id, which is the hold id, chosen before the first try. `created_at` is the
    time of admission, so that a repeat of the same charge is the same row. What was charged is not in
    here: the balance store decides it when it settles (never more than hold + available).
    `upstream` is who served it, "" the default one; `tries` those that were asked before and did not, as JSON;
    `abandoned_millicredits` what these may bill us for it.
    """

    charge_id: str
    account_id: str
    key_id: str
    endpoint: str
    model: str
    created_at: int
    held_millicredits: int
    cost_millicredits: int
    usage_source: UsageSource
    outcome: Outcome
    rates: msgspec.Raw
    billed_model: str = ""
    service_tier: str = "default"
    stream: bool = False
    free: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    audio_milliseconds: int = 0
    characters: int = 0
    web_searches: int = 0
    tool_calls: str = ""
    upstream_request_id: str = ""
    upstream_id: str = ""
    status: int = 200
    first_byte_ms: int = 0
    duration_ms: int = 0
    upstream: str = ""
    tries: str = ""
    abandoned_millicredits: int = 0
    end_user: str = ""
    tags: str = ""
    """One a line; what the customer's app says of the request."""


class UsageRow(NamedTuple):
    """A booked request as SQL has it. Times are Unix milliseconds, amounts millicredits, counts tokens.

    `tool_calls` is JSON of name → calls ("": none), `rates` the JSON snapshot that it was priced by.
    """

    charge_id: str
    created_at: int
    account_id: str
    key_id: str
    endpoint: str
    model: str
    billed_model: str
    service_tier: str
    stream: bool
    free: bool
    usage_source: str
    outcome: str
    status: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_input_tokens: int
    audio_output_tokens: int
    web_searches: int
    image_input_tokens: int
    image_output_tokens: int
    audio_milliseconds: int
    characters: int
    tool_calls: str
    held_millicredits: int
    charged_millicredits: int
    loss_millicredits: int
    cost_millicredits: int
    rates: str
    upstream_request_id: str
    upstream_id: str
    first_byte_ms: int
    duration_ms: int
    end_user: str
    tags: str
    upstream: str = ""
    tries: str = ""
    abandoned_millicredits: int = 0


encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(UsageRecord).decode

REST_SUFFIX = "-rest"
_COUNTS = (
    *(name for name in UsageRecord.__struct_fields__ if name.endswith("_tokens")),
    "cost_millicredits",
    "audio_milliseconds",
    "characters",
    "web_searches",
)


def rest_of(record: bytes, booked: bytes) -> tuple[str, bytes]:
    """Return (charge id, row) of what `record` says beyond the row `booked` of the same request.

    The two rows together say what the request used, but where the row that was booked said more.
    """
    whole, part = decode_record(record), decode_record(booked)
    counts = {name: max(0, getattr(whole, name) - getattr(part, name)) for name in _COUNTS}
    charge_id = whole.charge_id + REST_SUFFIX
    return charge_id, encode_record(msgspec.structs.replace(whole, charge_id=charge_id, **counts))
