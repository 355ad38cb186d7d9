"""GET /v1/models and /v1/models/{id}: what is allowed and priced, from our own price book; no upstream call."""

from datetime import UTC, datetime

import msgspec

from proxy.gateway.authenticate import may_use_model, refuse_model
from proxy.gateway.endpoints import METERED, MODEL_PREFIX, MODELS_PATH
from proxy.gateway.exchange import Exchange
from proxy.web.rejections import Rejection


async def answer_models(exchange: Exchange) -> None:
    """Answer one models request on the exchange's client."""
    try:
        key = exchange.key = await exchange.services.authenticator.authenticate(exchange.headers, exchange.peer)
        offered = {endpoint.name for endpoint in METERED.values()}
        prices, allowlist = exchange.services.prices, exchange.services.settings.billing.model_allowlist

        def sold(name: str) -> bool:
            model = prices.find(name)
            return (
                model is not None
                and bool(model.endpoints & offered)
                and may_use_model(name, allowlist, key.rules.models)
            )

        created = int(datetime.strptime(prices.effective_from, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
        if exchange.path == MODELS_PATH:
            found: object = {"object": "list", "data": [_model(name, created) for name in prices.names() if sold(name)]}
        else:
            name = exchange.path.removeprefix(MODEL_PREFIX).decode("ascii", "replace")
            if not sold(name):
                raise refuse_model(name[:120])
            found = _model(name, created)
    except Rejection as rejection:
        await exchange.reject(rejection)
    else:
        await exchange.answer_json(msgspec.json.encode(found))
    exchange.account()


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "openai"}
