"""Delivers notices to the operator's app over HTTP."""

import httpx

USER_AGENT = "tollkeeper-notices/1"
DELIVERY_SECONDS = 5.0


class Poster:
    """POSTs to one URL. No redirects: a notice goes where the operator said, and nowhere else."""

    def __init__(self, url: str) -> None:
        """`url` is the operator's app."""
        self._url = url
        self._client = httpx.AsyncClient(
            timeout=DELIVERY_SECONDS, follow_redirects=False, headers={"user-agent": USER_AGENT}
        )

    async def __call__(self, body: bytes, headers: dict[str, str]) -> str:
        """Deliver; "" when it was taken, else why not."""
        try:
            answer = await self._client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: no answer"
        return "" if answer.is_success else f"status {answer.status_code}"

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()
