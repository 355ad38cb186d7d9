"""GET /v1/models and /v1/models/{id}: what is on sale, with its price, from our own price book; no upstream call.

Each is OpenAI's model object, `shutdown_date` included, and says beside it what it costs here and what bounds it.
"""

from datetime import UTC, datetime

import msgspec

from billing.money.catalogue.models import Model
from billing.money.pricing import PriceBook
from config.settings import ServiceTier
from proxy.gateway.admission import is_on_sale, models_on_sale
from proxy.gateway.endpoints import MODEL_PREFIX, MODELS_PATH
from proxy.gateway.limits.free_calls import count_free_call
from proxy.gateway.plan import MODEL_NAME, refuse_model
from proxy.gateway.request import GatewayRequest
from proxy.web.rejections import Rejection


async def answer_models(request: GatewayRequest) -> None:
    """Answer one models request on the request's client."""
    try:
        services = request.services
        key = request.key = await services.authenticator.authenticate(request.headers, request.peer, tokens=True)
        await count_free_call(services, key, request.request_id, request.started_ms)
        prices, billing, today = services.prices_of(key.home_id), services.settings.billing, services.today()
        created = int(datetime.strptime(prices.effective_from, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
        if request.path == MODELS_PATH:
            sold = models_on_sale(prices, billing, today, key.rules.models)
            data = [_model(model.name, model, created, prices, billing.service_tier) for model in sold]
            found: object = {"object": "list", "data": data}
        else:
            name = request.path.removeprefix(MODEL_PREFIX).decode("ascii", "replace")
            one = prices.find(name) if MODEL_NAME.fullmatch(name) else None
            if one is None or not is_on_sale(name, one, billing, today, key.rules.models):
                raise refuse_model(name[:120])
            found = _model(name, one, created, prices, billing.service_tier)
    except Rejection as rejection:
        await request.reject(rejection)
    else:
        await request.answer_json(msgspec.json.encode(found))
    request.log()


def _model(name: str, model: Model, created: int, prices: PriceBook, service_tier: ServiceTier) -> dict[str, object]:
    """Model as it is shown; its price is that of a request which names no service tier."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "openai",
        "shutdown_date": model.ends.isoformat() if model.ends is not None else None,
        "context_window": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "price": prices.customer_price(model, service_tier if service_tier in model.tiers else "default"),
    }
