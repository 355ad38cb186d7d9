"""`GET /embed/tollkeeper.js`: pieces that an app puts into its own pages. The same for everybody: no key is asked."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SCRIPT = Path(__file__).with_name("tollkeeper.js")
HEADERS = {
    "cache-control": "public, max-age=300",
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
}


def embed_routes() -> list[Route]:
    """Route of the script, read once."""
    raw = SCRIPT.read_bytes()

    async def _script(_: Request) -> Response:
        return Response(raw, 200, HEADERS, "text/javascript")

    return [Route("/embed/tollkeeper.js", _script)]
