"""Show what the installed OpenAI SDK has that the inventory does not.

python -m scripts.surface

Walks the SDK's own types (fields, tools, items, events, usage) and prints, a union each, the members without an entry
and the entries without a member. Exits 1 when a member has no entry: it is to be classified in
proxy/gateway/bodies/inventory.py.
"""

import importlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from proxy.gateway.bodies import inventory
from proxy.gateway.bodies.inventory import SurfaceEntry


class SdkUnion(NamedTuple):
    """One union of the SDK's types, or the fields of one request, and the entries that stand for it.

    `ours`: entries that the SDK does not have, with the reason.
    """

    name: str
    module: str
    type: str
    entries: Mapping[str, SurfaceEntry]
    fields: bool = False
    ours: Mapping[str, str] = {}


STREAM = {"stream": "the SDK has it in the two classes above its base"}
SURFACE = (
    SdkUnion(
        "fields of /v1/chat/completions",
        "chat.completion_create_params",
        "CompletionCreateParamsBase",
        inventory.CHAT_FIELDS,
        fields=True,
        ours=STREAM,
    ),
    SdkUnion(
        "fields of /v1/completions",
        "completion_create_params",
        "CompletionCreateParamsBase",
        inventory.COMPLETION_FIELDS,
        fields=True,
        ours=STREAM,
    ),
    SdkUnion(
        "fields of /v1/embeddings",
        "embedding_create_params",
        "EmbeddingCreateParams",
        inventory.EMBEDDING_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/responses",
        "responses.response_create_params",
        "ResponseCreateParamsBase",
        inventory.RESPONSE_FIELDS,
        fields=True,
        ours={**STREAM, "client_metadata": "Codex CLI sends it", "betas": "the beta resource has it"},
    ),
    SdkUnion(
        "fields of /v1/responses/compact",
        "responses.response_compact_params",
        "ResponseCompactParams",
        inventory.COMPACT_FIELDS,
        fields=True,
        ours=dict.fromkeys(
            (
                "conversation",
                "prompt",
                "moderation",
                "access_programs",
                "betas",
                "context_management",
                "background_options",
            ),
            "refused as on /v1/responses",
        ),
    ),
    SdkUnion(
        "fields of /v1/responses/input_tokens",
        "responses.input_token_count_params",
        "InputTokenCountParams",
        inventory.COUNT_FIELDS,
        fields=True,
        ours=dict.fromkeys(
            ("prompt", "moderation", "access_programs", "betas", "context_management", "background_options"),
            "refused as on /v1/responses",
        ),
    ),
    SdkUnion(
        "fields of /v1/conversations",
        "conversations.conversation_create_params",
        "ConversationCreateParams",
        inventory.CONVERSATION_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/conversations/items",
        "conversations.item_create_params",
        "ItemCreateParams",
        inventory.CONVERSATION_ITEM_FIELDS,
        fields=True,
    ),
    SdkUnion("fields of /v1/files", "file_create_params", "FileCreateParams", inventory.FILE_FIELDS, fields=True),
    SdkUnion(
        "fields of /v1/uploads",
        "upload_create_params",
        "UploadCreateParams",
        inventory.UPLOAD_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/uploads/parts",
        "uploads.part_create_params",
        "PartCreateParams",
        inventory.PART_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/uploads/complete",
        "upload_complete_params",
        "UploadCompleteParams",
        inventory.COMPLETE_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/vector_stores",
        "vector_store_create_params",
        "VectorStoreCreateParams",
        inventory.STORE_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/vector_stores, changed",
        "vector_store_update_params",
        "VectorStoreUpdateParams",
        inventory.STORE_CHANGES,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/vector_stores/search",
        "vector_store_search_params",
        "VectorStoreSearchParams",
        inventory.SEARCH_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/vector_stores/files",
        "vector_stores.file_create_params",
        "FileCreateParams",
        inventory.STORE_FILE_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/vector_stores/file_batches",
        "vector_stores.file_batch_create_params",
        "FileBatchCreateParams",
        inventory.STORE_BATCH_FIELDS,
        fields=True,
    ),
    SdkUnion("fields of /v1/batches", "batch_create_params", "BatchCreateParams", inventory.BATCH_FIELDS, fields=True),
    SdkUnion(
        "fields of /v1/images/generations",
        "image_generate_params",
        "ImageGenerateParamsBase",
        inventory.IMAGE_FIELDS,
        fields=True,
        ours={**STREAM, **dict.fromkeys(("image", "images", "mask", "input_fidelity", "markup"), "of edits")},
    ),
    SdkUnion(
        "fields of /v1/images/edits",
        "image_edit_params",
        "ImageEditParamsBase",
        inventory.IMAGE_FIELDS,
        fields=True,
        ours={
            **STREAM,
            "images": "the JSON form has it",
            **dict.fromkeys(("style", "moderation", "safety_identifier"), "of generations"),
        },
    ),
    SdkUnion(
        "fields of /v1/audio/speech",
        "audio.speech_create_params",
        "SpeechCreateParams",
        inventory.SPEECH_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/audio/transcriptions",
        "audio.transcription_create_params",
        "TranscriptionCreateParamsBase",
        inventory.TRANSCRIPTION_FIELDS,
        fields=True,
        ours=STREAM,
    ),
    SdkUnion(
        "fields of /v1/audio/translations",
        "audio.translation_create_params",
        "TranslationCreateParams",
        inventory.TRANSLATION_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/moderations",
        "moderation_create_params",
        "ModerationCreateParams",
        inventory.MODERATION_FIELDS,
        fields=True,
    ),
    SdkUnion(
        "fields of /v1/decisions",
        "decision_create_params",
        "DecisionCreateParams",
        inventory.DECISION_FIELDS,
        fields=True,
    ),
    SdkUnion("tools", "responses.tool_param", "ToolParam", inventory.TOOLS),
    SdkUnion(
        "tools of a chat", "chat.chat_completion_tool_union_param", "ChatCompletionToolUnionParam", inventory.CHAT_TOOLS
    ),
    SdkUnion("input items", "responses.response_input_item_param", "ResponseInputItemParam", inventory.INPUT_ITEMS),
    SdkUnion("output items", "responses.response_output_item", "ResponseOutputItem", inventory.OUTPUT_ITEMS),
    SdkUnion(
        "events of a response", "responses.response_stream_event", "ResponseStreamEvent", inventory.RESPONSE_STREAM
    ),
    SdkUnion(
        "events of a socket's client",
        "responses.responses_client_event",
        "ResponsesClientEvent",
        inventory.SOCKET_CLIENT,
        ours={"response.cancel": "the API takes it"},
    ),
    SdkUnion("events on a socket", "responses.responses_server_event", "ResponsesServerEvent", inventory.SOCKET_SERVER),
    SdkUnion(
        "events of a Realtime client",
        "realtime.realtime_client_event_param",
        "RealtimeClientEventParam",
        inventory.REALTIME_CLIENT,
    ),
    SdkUnion(
        "events of a Realtime session",
        "realtime.realtime_server_event",
        "RealtimeServerEvent",
        inventory.REALTIME_SERVER,
    ),
)
USAGES = (
    ("completion_usage", "CompletionUsage"),
    ("responses.response_usage", "ResponseUsage"),
    ("images_response", "Usage"),
    ("realtime.realtime_response_usage", "RealtimeResponseUsage"),
)


def main() -> int:
    """Print the differences; 1 when a member has no entry."""
    unknown = False
    for union in SURFACE:
        missing, extra = difference(union)
        unknown = unknown or bool(missing)
        for name in sorted(missing):
            print(f"{union.name}: {name} is new in the SDK: it has no entry")
        for name in sorted(extra):
            print(f"{union.name}: {name} has an entry and is not in the SDK")
    for name in sorted(usage_fields() - inventory.USAGE_FIELDS.keys()):
        unknown = True
        print(f"usage: {name} is new in the SDK: it has no entry")
    if not unknown:
        print("every member of the SDK's surface has an entry")
    return int(unknown)


def difference(union: SdkUnion) -> tuple[set[str], set[str]]:
    """Members without an entry, and entries without a member."""
    found = getattr(importlib.import_module(f"openai.types.{union.module}"), union.type)
    names = set(_hints(found)) if union.fields else {kind for member in members_of(found) for kind in _kinds(member)}
    return names - union.entries.keys(), union.entries.keys() - names - union.ours.keys()


def usage_fields() -> set[str]:
    """Names of every figure of the usage objects, at any depth."""
    names: set[str] = set()
    for module, name in USAGES:
        _add_fields(getattr(importlib.import_module(f"openai.types.{module}"), name), names)
    return names


def _add_fields(model: Any, names: set[str]) -> None:
    for name, kind in _hints(model).items():
        names.add(name)
        for member in members_of(kind):
            if hasattr(member, "model_fields"):
                _add_fields(member, names)


def members_of(kind: Any) -> Iterator[Any]:
    """Members of a union, however it is nested."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from members_of(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(kind):
            yield from members_of(one)
    else:
        yield kind


def _kinds(member: Any) -> Iterator[str]:
    """Values that the member's `type` may have."""
    pending = [_hints(member).get("type")]
    while pending:
        kind = pending.pop()
        if get_origin(kind) is Literal:
            yield from map(str, get_args(kind))
        else:
            pending += get_args(kind)


def _hints(kind: Any) -> dict[str, Any]:
    fields = getattr(kind, "model_fields", None)
    if fields is not None:
        return {name: field.annotation for name, field in fields.items()}
    return typing.get_type_hints(kind, include_extras=True) if isinstance(kind, type) else {}


if __name__ == "__main__":
    sys.exit(main())
