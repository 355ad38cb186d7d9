"""Build docs/endpoints.md from the endpoint table.

python scripts/build_docs.py           write it
python scripts/build_docs.py --check   exit 1 when the committed one differs, or when a row has no price rule
"""

import json
import sys
from itertools import groupby
from pathlib import Path

from billing.money.pricing import PriceBook, load_catalogue
from proxy.gateway.bodies import inventory
from proxy.gateway.bodies.inventory import SHARED, TOOLS, Meaning, SurfaceEntry, named
from proxy.gateway.endpoints import METERED, OBJECT_ROUTES, REALTIME, Endpoint

SURFACES = {
    "/v1/chat/completions": inventory.CHAT_FIELDS,
    "/v1/completions": inventory.COMPLETION_FIELDS,
    "/v1/embeddings": inventory.EMBEDDING_FIELDS,
    "/v1/responses": inventory.RESPONSE_FIELDS,
    "/v1/responses/compact": inventory.COMPACT_FIELDS,
    "/v1/responses/input_tokens": inventory.COUNT_FIELDS,
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

| method | path | billed by | streams | models with a price |
|---|---|---|---|---|
"""
STORED = """
`GET /v1/models` and `GET /v1/models/{model}` list what is allowed and priced; no upstream call.

WebSockets: `/v1/responses` (every `response.create` is held for and settled like a request) and \
`/v1/realtime?model=` (a standing hold
covers the next response; `response.done` and billed transcription settle it).

## Stored responses

Only where `billing.allow_store` is on. They cost nothing and are open to the account that made them; \
anyone else's id is a 404.

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


def models_of(row: Endpoint) -> list[str]:
    """Models of the shipped prices that this endpoint serves."""
    book = PriceBook(load_catalogue(), "1", "exact")
    wanted = row.priced_as or row.name
    return [name for name in book.names() if (model := book.find(name)) is not None and wanted in model.endpoints]


def build() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for (method, path), row in METERED.items():
        streams = "yes" if row.events is not None or row.name in ("/v1/chat/completions", "/v1/completions") else "no"
        models = "free" if row.free else len(models_of(row))
        lines.append(f"| {method} | `{path.decode()}` | {row.unit} | {streams} | {models} |\n")
    lines.append(f"| WebSocket | `/v1/realtime` | {REALTIME.unit} | yes | {len(models_of(REALTIME))} |\n")
    lines.append(STORED)
    lines += [f"| {method} | `/v1/responses/{{response_id}}{verb}` |\n" for verb, method in OBJECT_ROUTES]
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
