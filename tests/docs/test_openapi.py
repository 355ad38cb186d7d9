"""proxy/customer_api/openapi.json is valid, complete and closed, and names every side route and no other."""

import ast
import inspect
import re
from typing import Any, cast

import msgspec
import pytest

from proxy.admin.accounts.api import AccountsApi
from proxy.admin.api import AdminApi
from proxy.admin.auth import AdminRoute
from proxy.admin.events.api import EventsApi
from proxy.admin.plans.api import PlansApi
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.request_bodies import ReasonRequest
from proxy.admin.roles import MAY, ROLES
from tests.support.openapi import DOCUMENT
from tests.support.servers import ROOT

NOTHING = cast("Any", None)
ADMIN = AdminApi(
    NOTHING,
    NOTHING,
    AccountsApi(NOTHING),
    PlansApi(NOTHING, NOTHING, NOTHING),
    EventsApi(NOTHING, NOTHING, NOTHING),
    PromoCodesApi(NOTHING),
).table()


@pytest.mark.slow
def test_the_document_is_valid_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate  # 0.15 s, for this test alone

    assert DOCUMENT["openapi"].startswith("3.1.")
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)


def test_the_document_names_every_side_route_and_no_other() -> None:
    served = {"/v1/models", "/v1/models/{model}"}  # the two that are not metered
    for folder in ("server", "customer_api", "customer_api/credits"):
        for node in (
            node for path in (ROOT / "proxy" / folder).glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        ):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Route":
                served.add(ast.literal_eval(node.args[0]))
    assert len(served) == 25
    served |= {"/api/portal/sessions"} | {row.path for row in ADMIN}
    assert set(DOCUMENT["paths"]) == served
    assert all(set(item) <= {"get", "post", "put", "patch"} for item in DOCUMENT["paths"].values())


def test_the_document_has_every_route_of_admins_with_its_roles_and_no_other() -> None:
    documented = {
        (method.upper(), path): operation["x-roles"]
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if path.startswith(("/api/admin/", "/api/tokens"))
    }
    assert documented == {(row.method, row.path): [role for role in ROLES if role in MAY[row.action]] for row in ADMIN}
    assert DOCUMENT["paths"]["/api/portal/sessions"]["post"]["x-roles"] == [
        role for role in ROLES if role in MAY["portal.open"]
    ]


@pytest.mark.parametrize(
    "row", [row for row in ADMIN if row.method != "GET"], ids=lambda row: f"{row.method} {row.path}"
)
def test_what_an_admin_may_send_is_what_is_documented(row: AdminRoute) -> None:
    """Field by field what the handler decodes, and whether it must be there."""
    described = DOCUMENT["paths"][row.path][row.method.lower()]["requestBody"]
    source = inspect.getsource(row.handler)
    kind = (
        getattr(inspect.getmodule(row.handler), named[1])
        if (named := re.search(r"json_body\(request, (\w+)\)", source))
        else ReasonRequest
    )
    assert described["required"] == ("_reason_if_any" not in source)
    (schema,) = (
        DOCUMENT["components"]["schemas"][name.rpartition("/")[2]]
        for name in described["content"]["application/json"]["schema"].values()
    )
    fields = msgspec.structs.fields(kind)
    assert set(schema["properties"]) == {field.encode_name for field in fields}
    assert set(schema["required"]) == {field.encode_name for field in fields if field.required}


def test_every_schema_is_closed_so_that_an_undocumented_field_is_found() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name != "Error":  # 402s and the like carry more
            assert schema["additionalProperties"] is False, name


def test_everything_documented_is_described() -> None:
    for path, operation in (
        (path, operation) for path, item in DOCUMENT["paths"].items() for operation in item.values()
    ):
        assert operation["summary"], path
        assert operation["operationId"], path
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (path, parameter["name"])
