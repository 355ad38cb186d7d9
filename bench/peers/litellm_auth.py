"""LiteLLM's auth hook: one key with a budget. It is copied beside the proxy's configuration and runs in its environment."""

from fastapi import Request  # type: ignore[import-not-found]
from litellm.proxy._types import UserAPIKeyAuth, hash_token  # type: ignore[import-not-found]

KEY, BUDGET_USD = "sk-bench", 1_000_000.0


async def check(request: Request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 - the hook's signature
    """Return what the key may spend."""
    if api_key != KEY:
        raise ValueError("unknown key")
    return UserAPIKeyAuth(api_key=api_key, token=hash_token(api_key), user_id="bench", max_budget=BUDGET_USD)
