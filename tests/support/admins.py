"""How an admin's key is sent: as a bearer, and by the form of the operators' page."""

import httpx


def enter(browser: httpx.Client, key: str) -> httpx.Response:
    """Send the form that asks for a key, as a browser does from our own page."""
    return browser.post("/admin/sign-in", data={"key": key}, headers={"origin": str(browser.base_url).rstrip("/")})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
