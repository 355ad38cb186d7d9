"""OpenAI's surface as data: what each field, tool, item, event and usage figure means to the meter. Pure.

Parsers, meters, docs/endpoints.md and the texts of refusals read it; a test holds it against the unions of the official
SDK's types (`make surface` shows what a newer SDK brings). The meanings:

    passes       goes on as it is, and costs nothing beside the tokens it is made of
    bounds       limits what the request can cost
    prices       decides by which price
    counted      what passes of it is counted when the usage does not come
    usage        says what was used
    reference    points to an object, whose owner must be the one who asks
    tenant name  is replaced by the tenant's own
    client       runs at the client: costs tokens only
    hosted       runs at OpenAI: allowed by `billing.allowed_tools`, priced, capped, held for
    tools        carries tool definitions, which are judged where they stand
    refused      is refused; `why` is what users read
"""

from typing import Literal, NamedTuple

Meaning = Literal[
    "passes",
    "bounds",
    "prices",
    "counted",
    "usage",
    "reference",
    "tenant name",
    "client",
    "hosted",
    "tools",
    "refused",
]


class SurfaceEntry(NamedTuple):
    """One member of the surface. `tokens`: what one call of a hosted tool may add to what the model reads next."""

    meaning: Meaning
    why: str = ""
    tokens: int = 0


def _all(meaning: Meaning, names: str, why: str = "") -> dict[str, SurfaceEntry]:
    return {name: SurfaceEntry(meaning, why) for name in names.split()}


LEAVE_OUT = "has no price here, or belongs to the shared OpenAI account: leave it out"

CHAT_FIELDS = {
    **_all(
        "passes",
        "frequency_penalty function_call functions logit_bias logprobs messages metadata parallel_tool_calls "
        "presence_penalty reasoning_effort response_format seed stop stream stream_options temperature tool_choice "
        "top_logprobs top_p verbosity",
    ),
    **_all("bounds", "max_completion_tokens max_tokens n prediction"),
    **_all(
        "prices",
        "audio modalities model prompt_cache_options prompt_cache_retention service_tier store web_search_options",
    ),
    **_all("tenant name", "prompt_cache_key safety_identifier user"),
    **_all("tools", "tools"),
    **_all("prices", "moderation"),
}
COMPLETION_FIELDS = {
    **_all(
        "passes",
        "echo frequency_penalty logit_bias logprobs presence_penalty prompt seed stop stream stream_options suffix "
        "temperature top_p",
    ),
    **_all("bounds", "best_of max_tokens n"),
    **_all("prices", "model"),
    **_all("tenant name", "user"),
}
EMBEDDING_FIELDS = {
    **_all("passes", "dimensions encoding_format input"),
    **_all("prices", "model"),
    **_all("tenant name", "user"),
}
_RESPONSE_SHARED = {
    **_all("reference", "previous_response_id"),
    **_all("prices", "model prompt_cache_options prompt_cache_retention service_tier"),
    **_all("tenant name", "prompt_cache_key"),
    **_all("passes", "input instructions"),
}
_NOT_IN_RESPONSES = {
    **_all("refused", "prompt", "prompt template"),
    **_all("refused", "access_programs betas", LEAVE_OUT),
    "background_options": SurfaceEntry("refused", "has no price here: leave it out"),
}
SHARED = ("prompt",)
"""Refused fields that point into the shared account: theirs is a 404, and `why` the object's name."""
RESPONSE_FIELDS = {
    **_RESPONSE_SHARED,
    **_all("reference", "conversation"),
    **_NOT_IN_RESPONSES,
    **_all(
        "passes",
        "background client_metadata image include metadata parallel_tool_calls reasoning stream stream_options "
        "temperature text tool_choice top_logprobs top_p truncation",
    ),
    **_all("bounds", "context_management max_output_tokens max_tool_calls"),
    **_all("prices", "moderation store"),
    **_all("tenant name", "safety_identifier user"),
    **_all("tools", "tools"),
}
_OF_A_RESPONSE = _all("refused", "moderation context_management", "belongs to /v1/responses: leave it out")
COMPACT_FIELDS = {
    **_RESPONSE_SHARED,
    **_NOT_IN_RESPONSES,
    **_OF_A_RESPONSE,
    **_all("passes", "image"),
    **_all("refused", "conversation", "is read by /v1/responses: leave it out, or send its items"),
}
COUNT_FIELDS = {
    **_NOT_IN_RESPONSES,
    **_OF_A_RESPONSE,
    **_all("reference", "conversation previous_response_id"),
    **_all("prices", "model"),
    **_all("passes", "input instructions parallel_tool_calls personality reasoning text tool_choice truncation"),
    **_all("tools", "tools"),
}
"""Of /v1/responses/input_tokens."""
METADATA_FIELDS = {**_all("passes", "metadata")}
"""Of an object that is stored, changed by its owner."""
CONVERSATION_FIELDS = {**METADATA_FIELDS, **_all("bounds", "items")}
CONVERSATION_ITEM_FIELDS = {**_all("bounds", "items"), **_all("passes", "include")}
FILE_FIELDS = {**_all("bounds", "file"), **_all("passes", "expires_after purpose")}
UPLOAD_FIELDS = {**_all("bounds", "bytes"), **_all("passes", "expires_after filename mime_type purpose")}
PART_FIELDS = {**_all("bounds", "data")}
COMPLETE_FIELDS = {**_all("reference", "part_ids"), **_all("passes", "md5")}
STORE_CHANGES = {**_all("passes", "expires_after metadata name")}
STORE_FIELDS = {
    **STORE_CHANGES,
    **_all("passes", "description"),
    **_all("reference", "file_ids"),
    **_all("bounds", "chunking_strategy"),
}
_PUT = {**_all("bounds", "chunking_strategy"), **_all("passes", "attributes")}
STORE_FILE_FIELDS = {**_PUT, **_all("reference", "file_id")}
STORE_BATCH_FIELDS = {**_PUT, **_all("reference", "file_ids files")}
ATTRIBUTE_FIELDS = {**_all("passes", "attributes")}
SEARCH_FIELDS = {
    **_all("prices", "query"),
    **_all("passes", "filters max_num_results ranking_options rewrite_query"),
}
"""Of uploads, vector stores, their files, and searches of them."""
BATCH_FIELDS = {
    **_all("reference", "input_file_id"),
    **_all("prices", "endpoint"),
    **_all("passes", "completion_window metadata output_expires_after"),
}
IMAGE_FIELDS = {
    **_all(
        "passes",
        "background complexity frame_count frame_duration_ms input_fidelity moderation output_compression "
        "response_format stream style",
    ),
    **_all("bounds", "image images markup mask n partial_images prompt quality size"),
    **_all("prices", "model output_format svg"),
    **_all("tenant name", "safety_identifier user"),
}
SPEECH_FIELDS = {
    **_all("passes", "voice"),
    **_all("bounds", "input instructions speed"),
    **_all("prices", "model response_format stream_format"),
}
TRANSCRIPTION_FIELDS = {
    **_all(
        "passes",
        "chunking_strategy include keywords known_speaker_names known_speaker_references language languages prompt "
        "response_format stream temperature timestamp_granularities",
    ),
    **_all("bounds", "file"),
    **_all("prices", "model"),
}
TRANSLATION_FIELDS = {
    **_all("passes", "prompt response_format temperature"),
    **_all("bounds", "file"),
    **_all("prices", "model"),
}
MODERATION_FIELDS = {**_all("passes", "input"), **_all("prices", "model")}
DECISION_FIELDS = {
    **_all("bounds", "input questions"),
    **_all("prices", "model prompt_cache_options"),
    **_all("tenant name", "prompt_cache_key safety_identifier"),
}

_LACKS_PRICE = "it runs at OpenAI and has no price here"
TOOLS = {
    **_all("client", "function custom apply_patch local_shell namespace"),
    "shell": SurfaceEntry("client", f"{_LACKS_PRICE}: give it `environment` of type local, which runs at the client"),
    "tool_search": SurfaceEntry("client", f"{_LACKS_PRICE}: set `execution` to client"),
    "web_search": SurfaceEntry("hosted", tokens=20_000),
    "web_search_2025_08_26": SurfaceEntry("hosted", tokens=20_000),
    "web_search_preview": SurfaceEntry("hosted", tokens=20_000),
    "web_search_preview_2025_03_11": SurfaceEntry("hosted", tokens=20_000),
    "file_search": SurfaceEntry("hosted", tokens=40_000),
    "code_interpreter": SurfaceEntry("hosted", tokens=32_000),
    "image_generation": SurfaceEntry("hosted", tokens=8_000),
    "mcp": SurfaceEntry("hosted", tokens=40_000),
    "computer": SurfaceEntry("hosted", tokens=8_000),
    "computer_use_preview": SurfaceEntry("hosted", tokens=8_000),
    "programmatic_tool_calling": SurfaceEntry("hosted", tokens=8_000),
}
"""Tools of a response. Tokens of a call are calibrated, not published. `why` of a client's tool: its hosted form."""
HOSTED = frozenset(name for name, entry in TOOLS.items() if entry.meaning == "hosted")
RUNS_AT_CLIENT = {"shell": ("environment", "local"), "tool_search": ("execution", "client")}
"""Tools that run at either side → the member that says which, and what it says for the client's."""
CHAT_TOOLS = {**_all("client", "function custom")}

INPUT_ITEMS = {
    **_all(
        "counted",
        "message function_call function_call_output custom_tool_call custom_tool_call_output computer_call "
        "computer_call_output apply_patch_call apply_patch_call_output shell_call shell_call_output local_shell_call "
        "local_shell_call_output web_search_call file_search_call code_interpreter_call image_generation_call "
        "mcp_call mcp_approval_request mcp_approval_response tool_search_call program program_output compaction "
        "compaction_trigger configuration_update mcp_list_tools",
    ),
    **_all("tools", "additional_tools tool_search_output"),
    **_all("reference", "item_reference reasoning"),
}
"""Items of `input`. A reasoning item is a reference where it has no content of its own."""
DATA_ITEMS = frozenset(("mcp_list_tools",))
"""Items whose `tools` are a server's own list, not definitions that a model could call."""

OUTPUT_ITEMS = {
    **_all(
        "counted",
        "message function_call custom_tool_call reasoning computer_call apply_patch_call shell_call local_shell_call "
        "mcp_call mcp_approval_request tool_search_call program",
    ),
    **_all(
        "passes",
        "function_call_output custom_tool_call_output computer_call_output apply_patch_call_output shell_call_output "
        "local_shell_call_output mcp_list_tools mcp_approval_response tool_search_output program_output compaction "
        "additional_tools",
    ),
    **_all("prices", "web_search_call file_search_call code_interpreter_call image_generation_call"),
}
"""Items of an output: counted by their texts, or priced by the call."""

_PAIRED = (
    "response.code_interpreter_call_code response.custom_tool_call_input response.function_call_arguments "
    "response.mcp_call_arguments response.output_text response.reasoning_summary_text response.reasoning_text "
    "response.refusal response.audio.transcript response.shell_call_command"
)
"""Events that come as `.delta` and `.done`: the pieces are counted, the whole repeats them."""
RESPONSE_STREAM = {
    **_all("usage", "response.completed response.incomplete response.failed"),
    **{f"{name}.delta": SurfaceEntry("counted") for name in _PAIRED.split()},
    **{f"{name}.done": SurfaceEntry("passes") for name in _PAIRED.split()},
    **_all(
        "counted",
        "response.output_item.done response.image_generation_call.partial_image response.audio.delta "
        "response.shell_call_output_content.delta",
    ),
    **_all(
        "passes",
        "error response.created response.in_progress response.queued response.output_item.added "
        "response.content_part.added response.content_part.done response.output_text.annotation.added "
        "response.reasoning_summary_part.added response.reasoning_summary_part.done response.audio.done "
        "response.shell_call_command.added response.shell_call_output_content.done response.compaction.compacting "
        "response.code_interpreter_call.completed response.code_interpreter_call.in_progress "
        "response.code_interpreter_call.interpreting response.file_search_call.completed "
        "response.file_search_call.in_progress response.file_search_call.searching "
        "response.image_generation_call.completed response.image_generation_call.generating "
        "response.image_generation_call.in_progress response.mcp_call.completed response.mcp_call.failed "
        "response.mcp_call.in_progress response.mcp_list_tools.completed response.mcp_list_tools.failed "
        "response.mcp_list_tools.in_progress response.web_search_call.completed response.web_search_call.in_progress "
        "response.web_search_call.searching",
    ),
}
SOCKET_CLIENT = {
    **_all("bounds", "response.create"),
    **_all("passes", "response.cancel"),
    **_all("refused", "response.steer", "it could start a response that nothing is held for"),
}
"""Events of a client on the /v1/responses WebSocket."""
SOCKET_SERVER = {
    **RESPONSE_STREAM,
    **_all("passes", "response.steer.accepted response.steer.failed response.steer.pending"),
}
REALTIME_CLIENT = {
    **_all("bounds", "session.update input_audio_buffer.append conversation.item.create response.create"),
    **_all(
        "passes",
        "input_audio_buffer.commit input_audio_buffer.clear output_audio_buffer.clear conversation.item.truncate "
        "conversation.item.delete conversation.item.retrieve response.cancel",
    ),
}
REALTIME_SERVER = {
    **_all("usage", "response.done conversation.item.input_audio_transcription.completed"),
    **_all(
        "bounds",
        "session.updated response.created input_audio_buffer.committed input_audio_buffer.cleared "
        "input_audio_buffer.speech_started input_audio_buffer.speech_stopped "
        "conversation.item.input_audio_transcription.failed error",
    ),
    **_all(
        "counted",
        "response.output_audio.delta response.output_audio_transcript.delta response.output_text.delta "
        "response.function_call_arguments.delta response.mcp_call_arguments.delta response.output_item.done",
    ),
    **_all(
        "passes",
        "session.created conversation.created conversation.item.added conversation.item.created "
        "conversation.item.deleted conversation.item.done conversation.item.retrieved conversation.item.truncated "
        "conversation.item.input_audio_transcription.delta conversation.item.input_audio_transcription.segment "
        "input_audio_buffer.dtmf_event_received input_audio_buffer.timeout_triggered mcp_list_tools.completed "
        "mcp_list_tools.failed mcp_list_tools.in_progress output_audio_buffer.cleared output_audio_buffer.started "
        "output_audio_buffer.stopped rate_limits.updated response.content_part.added response.content_part.done "
        "response.function_call_arguments.done response.mcp_call.completed response.mcp_call.failed "
        "response.mcp_call.in_progress response.mcp_call_arguments.done response.output_audio.done "
        "response.output_audio_transcript.done response.output_item.added response.output_text.done",
    ),
}
USAGE_FIELDS = {
    **_all(
        "usage",
        "prompt_tokens completion_tokens total_tokens prompt_tokens_details completion_tokens_details cached_tokens "
        "cache_write_tokens cache_write_tokens_details ttl_30m_tokens ttl_12h_tokens audio_tokens image_tokens "
        "reasoning_tokens input_tokens output_tokens input_tokens_details output_tokens_details input_token_details "
        "output_token_details cached_tokens_details seconds",
    ),
    **_all("passes", "type text_tokens accepted_prediction_tokens rejected_prediction_tokens"),
}
"""Figures of usage objects. What passes is a part of another figure that is priced with it."""


def offered(fields: dict[str, SurfaceEntry]) -> frozenset[str]:
    """Names that are not refused."""
    return frozenset(name for name, entry in fields.items() if entry.meaning != "refused")


def named(entries: dict[str, SurfaceEntry], *meanings: Meaning) -> frozenset[str]:
    """Names of these meanings."""
    return frozenset(name for name, entry in entries.items() if entry.meaning in meanings)
