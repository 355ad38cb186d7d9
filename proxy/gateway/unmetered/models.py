"""GET /v1/models and /v1/models/{id}: what is allowed and priced, from our own price book; no upstream call."""

from datetime import UTC, datetime

import msgspec

from proxy.gateway.endpoints import METERED, MODEL_PREFIX, MODELS_PATH
from proxy.gateway.plan import may_use_model, refuse_model
from proxy.gateway.request import GatewayRequest
from proxy.web.rejections import Rejection


async def answer_models(request: GatewayRequest) -> None:
    """Answer one models request on the request's client."""
    try:
        key = request.key = await request.services.authenticator.authenticate(request.headers, request.peer)
        offered = {endpoint.name for endpoint in METERED.values()}
        prices, allowlist = request.services.prices, request.services.settings.billing.model_allowlist

        def sold(name: str) -> bool:
            model = prices.find(name)
            return (
                model is not None
                and bool(model.endpoints & offered)
                and may_use_model(name, allowlist, key.rules.models)
            )

        created = int(datetime.strptime(prices.effective_from, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
        if request.path == MODELS_PATH:
            found: object = {"object": "list", "data": [_model(name, created) for name in prices.names() if sold(name)]}
        else:
            name = request.path.removeprefix(MODEL_PREFIX).decode("ascii", "replace")
            if not sold(name):
                raise refuse_model(name[:120])
            found = _model(name, created)
    except Rejection as rejection:
        await request.reject(rejection)
    else:
        await request.answer_json(msgspec.json.encode(found))
    request.log()


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "openai"}
