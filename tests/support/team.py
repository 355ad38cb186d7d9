"""The operator's app, which says what holds for the end users of a customer: answers are checked against openapi.json."""

from typing import Any

from tests.support import web
from tests.support.admins import bearer
from tests.support.openapi import fits
from tests.support.servers import Tollkeeper

BASE = "/api/admin/accounts/{account_id}"


class ServiceApp:
    """Calls of the admin API with the app's service key."""

    def __init__(self, server: Tollkeeper) -> None:
        self.server = server
        self.key = str(server.cli("admin", "create", "our app", "--role", "service")["adminKey"])

    def ask(self, method: str, documented: str, code: int | None = 200, **options: Any) -> Any:
        """`documented`: a path of openapi.json; its parameters by name, what is left goes to the request."""
        path = documented
        for name in [name for name in options if f"{{{name}}}" in documented]:
            path = path.replace(f"{{{name}}}", options.pop(name))
        answer = web.request(method, self.server.url + path, headers=bearer(self.key), timeout=20, **options)
        found = fits(answer, documented)
        assert code is None or answer.status_code == code, answer.text
        return found

    def rules(self, account_id: str, code: int = 200, **changes: Any) -> Any:
        return self.ask("PATCH", f"{BASE}/end-user-rules", code, account_id=account_id, json=changes)

    def put(self, account_id: str, end_user: str, code: int | None = None, **said: Any) -> Any:
        body = {"endUser": end_user, **said}
        return self.ask("PUT", f"{BASE}/end-users", code, account_id=account_id, json=body)

    def user(self, account_id: str, end_user: str) -> Any:
        query = {"endUser": end_user}
        return self.ask("GET", f"{BASE}/end-users", account_id=account_id, params=query)["data"][0]


def a_day(credits: str) -> dict[str, Any]:
    return {"budgets": [{"credits": credits, "period": "day"}]}
