"""Build docs/endpoints.md from the endpoint table.

python scripts/build_docs.py           write it
python scripts/build_docs.py --check   exit 1 when the committed one differs, or when a row has no price rule
"""

import json
import sys
from datetime import date
from functools import cache
from itertools import groupby
from pathlib import Path

from billing.money.catalogue.models import Model
from billing.money.pricing import PriceBook, load_catalogue
from proxy.gateway.bodies import inventory
from proxy.gateway.bodies.inventory import SHARED, TOOLS, Meaning, SurfaceEntry, named
from proxy.gateway.endpoints import METERED, REALTIME, VOICE_ROUTES, Endpoint
from proxy.gateway.unmetered.object_routes import OBJECT_ROUTES

SURFACES = {
    "/v1/chat/completions": inventory.CHAT_FIELDS,
    "/v1/completions": inventory.COMPLETION_FIELDS,
    "/v1/embeddings": inventory.EMBEDDING_FIELDS,
    "/v1/responses": inventory.RESPONSE_FIELDS,
    "/v1/responses/compact": inventory.COMPACT_FIELDS,
    "/v1/responses/input_tokens": inventory.COUNT_FIELDS,
    "/v1/conversations": inventory.CONVERSATION_FIELDS,
    "/v1/conversations/{conversation}/items": inventory.CONVERSATION_ITEM_FIELDS,
    "/v1/files": inventory.FILE_FIELDS,
    "/v1/uploads": inventory.UPLOAD_FIELDS,
    "/v1/uploads/{upload}/parts": inventory.PART_FIELDS,
    "/v1/uploads/{upload}/complete": inventory.COMPLETE_FIELDS,
    "/v1/batches": inventory.BATCH_FIELDS,
    "/v1/vector_stores": inventory.STORE_FIELDS,
    "/v1/vector_stores/{vector_store}/files": inventory.STORE_FILE_FIELDS,
    "/v1/vector_stores/{vector_store}/file_batches": inventory.STORE_BATCH_FIELDS,
    "/v1/vector_stores/{vector_store}/search": inventory.SEARCH_FIELDS,
    "/v1/images/*": inventory.IMAGE_FIELDS,
    "/v1/audio/speech": inventory.SPEECH_FIELDS,
    "/v1/audio/transcriptions": inventory.TRANSCRIPTION_FIELDS,
    "/v1/audio/translations": inventory.TRANSLATION_FIELDS,
    "/v1/moderations": inventory.MODERATION_FIELDS,
    "/v1/decisions": inventory.DECISION_FIELDS,
    "events to the /v1/responses WebSocket": inventory.SOCKET_CLIENT,
    "events to /v1/realtime": inventory.REALTIME_CLIENT,
}
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "endpoints.md"
REFUSED = ROOT / "proxy" / "gateway" / "refused.json"

HEAD = """# Endpoints

Made by `scripts/build_docs.py` from the one table in `proxy/gateway/endpoints.py`; do not edit.

## Offered

| method | path | billed by | streams | models on sale |
|---|---|---|---|---|
"""
STORED = """
Models on sale: those of the shipped prices that had not ended on their date. `GET /v1/models` and \
`GET /v1/models/{model}` list what is allowed,
priced and not ended, each with its price, limits and `shutdown_date`; no upstream call.

WebSockets: `/v1/responses` (every `response.create` is held for and settled like a request) and \
`/v1/realtime?model=` (a standing hold
covers the next response; `response.done` and billed transcription settle it); \
`/v1/realtime?intent=transcription` only transcribes (each item of sound at its transcriber's price).

## Stored objects

Where `billing.allow_store` is on (it is, unless the operator switches it off). They cost nothing beside what requests \
read of them (but [vector stores](storage.md#vector-stores), by the day, and their searches), \
and are open to the account that made them; anyone else's id is the 404 of an id that never was. Lists \
are of the account's own. How much one account may keep: `[storage]` in proxy.toml.

| method | path |
|---|---|
"""
FIELDS = """
## Fields, tools and items

From the inventory, `proxy/gateway/bodies/inventory.py`, which is held against the types of OpenAI's own SDK. \
Everything else is refused by its name.

| where | passes | bounds or prices the request | replaced by the tenant's own | refused, and why |
|---|---|---|---|---|
"""
TOOL_TABLE = """
| tool of a response, wherever it stands | runs | offered |
|---|---|---|
"""
NOT_OFFERED = """
## Refused by name

Everything else OpenAI offers is refused with 403 and the reason, before any upstream call; \
what OpenAI does not have is a 404.

| paths | reason |
|---|---|
"""


def main() -> int:
    """Write or check the page."""
    missing = [row.name for row in (*METERED.values(), REALTIME) if not row.free and not models_of(row)]
    if missing:
        print(f"no model is priced for {', '.join(missing)}", file=sys.stderr)
        return 1
    page = build()
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") != page:
            print("docs/endpoints.md is out of date: run python scripts/build_docs.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


def inventory_tables() -> list[str]:
    """Tables of the inventory."""
    lines = [FIELDS]
    for where, entries in SURFACES.items():
        columns = [
            _names(entries, "passes", "client", "counted"),
            _names(entries, "bounds", "prices", "reference", "tools"),
            _names(entries, "tenant name"),
            "; ".join(
                f"`{name}` {'is kept in the shared account' if name in SHARED else entry.why}"
                for name, entry in sorted(entries.items())
                if entry.meaning == "refused"
            ),
        ]
        lines.append(f"| {where} | {' | '.join(columns)} |\n")
    lines.append(TOOL_TABLE)
    for name, entry in TOOLS.items():
        runs = "at OpenAI" if entry.meaning in ("hosted", "refused") else "at the client"
        offered = {"hosted": "in `billing.allowed_tools`", "refused": f"no: {entry.why}"}.get(entry.meaning, "yes")
        lines.append(
            f"| `{name}` | {runs} | {offered}{f'; {entry.why}' if entry.meaning == 'client' and entry.why else ''} |\n"
        )
    return lines


def _names(entries: dict[str, SurfaceEntry], *meanings: Meaning) -> str:
    return ", ".join(f"`{name}`" for name in sorted(named(entries, *meanings)))


@cache
def shipped_prices() -> PriceBook:
    return PriceBook(load_catalogue(), "1", "exact")


def models_of(row: Endpoint) -> list[Model]:
    """Models of the shipped prices that this endpoint serves."""
    book = shipped_prices()
    wanted = row.priced_as or row.name
    models = (book.find(name) for name in book.names())
    return [model for model in models if model is not None and wanted in model.endpoints]


def sold(row: Endpoint) -> int:
    """Count the models of the shipped prices that had not ended on their date: the page is the same on every day."""
    shipped = date.fromisoformat(load_catalogue()["effectiveFrom"])
    return sum(not model.has_ended(shipped) for model in models_of(row))


def speakers() -> list[Model]:
    """Models that can have a call: those that answer, and had not ended on the date of the shipped prices."""
    shipped = date.fromisoformat(load_catalogue()["effectiveFrom"])
    models = [model for model in models_of(REALTIME) if not model.has_ended(shipped)]
    return [model for model in models if model.context_window is not None]


def build() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for (method, path), row in METERED.items():
        streams = "yes" if row.events is not None or row.name in ("/v1/chat/completions", "/v1/completions") else "no"
        models = "free" if row.free else sold(row)
        lines.append(f"| {method} | `{path.decode()}` | {row.unit} | {streams} | {models} |\n")
    lines.append(f"| WebSocket | `/v1/realtime` | {REALTIME.unit} | yes | {sold(REALTIME)} |\n")
    for verb, route, unit in VOICE_ROUTES:
        models = "free" if unit == "free" else len(speakers())
        lines.append(f"| {verb} | `{route}` ([voice](voice.md)) | {unit} | no | {models} |\n")
    lines.append(STORED)
    lines += [f"| {route.method} | `{route.path}` |\n" for route in OBJECT_ROUTES]
    lines += inventory_tables()
    lines.append(NOT_OFFERED)
    rows = json.loads(REFUSED.read_text(encoding="utf-8"))
    by_reason = groupby(sorted(rows, key=lambda row: (row["reason"], row["path"])), key=lambda row: row["reason"])
    for reason, group in by_reason:
        paths = sorted({row["path"] for row in group})
        lines.append(f"| {', '.join(f'`{path}`' for path in paths)} | {reason} |\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
