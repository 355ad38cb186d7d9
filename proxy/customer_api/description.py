"""`GET /openapi.json`: the description of the side API. It needs no key: it says nothing of anybody."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

DOCUMENT = Path(__file__).with_name("openapi.json")


def description_routes() -> list[Route]:
    """Route of the description, read once."""
    raw = DOCUMENT.read_bytes()

    async def _describe(_: Request) -> Response:
        return Response(raw, 200, {"cache-control": "public, max-age=300"}, "application/json")

    return [Route("/openapi.json", _describe)]
