"""The endpoints: method, path, the library's class of its parameters, and what it does."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from sandbox.stripe.account import profile
from sandbox.stripe.account.errors import invalid
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.api import lists, params
from sandbox.stripe.checkout import catalog, portal, sessions
from sandbox.stripe.payments import (
    balance,
    customers,
    disputes,
    payment_intents,
    payment_methods,
    refunds,
    setup_intents,
    taxes,
)
from sandbox.stripe.webhooks import endpoints

Handler = Callable[[World, dict[str, Any], list[str]], Obj]
"""Gets the typed parameters and the ids of the path."""
ANYTHING: Final = "*"
"""Parameters that no class describes, taken as they come."""


class Route(msgspec.Struct, frozen=True):
    """One endpoint."""

    method: str
    pattern: re.Pattern[str]
    params: str
    handler: Handler


def _retrieve(kind: str) -> Handler:
    def handler(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
        del params
        return world.get(kind, ids[0])

    return handler


def _list(kind: str, *filters: str) -> Handler:
    """All objects of a kind whose fields equal the parameters named in `filters`."""

    def handler(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
        del ids
        wanted = {name: params[name] for name in filters if name in params}
        found = [item for item in world.find(kind, **wanted) if not item.get("deleted")]
        return lists.show(found, params, f"/v1/{_PATHS.get(kind, kind + 's')}")

    return handler


_PATHS: Final = {"checkout.session": "checkout/sessions", "webhook_endpoint": "webhook_endpoints"}


def _change(kind: str, action: Callable[[World, Obj, dict[str, Any]], Obj]) -> Handler:
    return lambda world, params, ids: action(world, world.get(kind, ids[0]), params)


def _act(kind: str, action: Callable[[World, Obj], Obj]) -> Handler:
    return lambda world, _params, ids: action(world, world.get(kind, ids[0]))


def _line_items(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    items: Iterable[Obj] = world.get("checkout.session", ids[0])["_items"]
    # Shown in the order given, not newest first.
    return lists.show(reversed(list(items)), params, f"/v1/checkout/sessions/{ids[0]}/line_items")


def _customer_methods(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    customers.customer(world, ids[0], "id")
    return _methods_of(world, params | {"customer": ids[0]}, f"/v1/customers/{ids[0]}/payment_methods")


def _list_methods(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    del ids
    return _methods_of(world, params, "/v1/payment_methods")


def _methods_of(world: World, params: dict[str, Any], url: str) -> Obj:
    found = [
        item
        for item in world.objects["payment_method"].values()
        if item["customer"] and item["customer"] == params.get("customer")
    ]
    return lists.show([item for item in found if params.get("type") in {None, item["type"]}], params, url)


def _list_events(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    del ids
    if "type" in params and "types" in params:
        raise invalid("You may only specify one of these parameters: type, types.", None, "type")
    wanted = [params["type"]] if "type" in params else params.get("types")
    success = params.get("delivery_success")
    found = [
        event
        for event in world.visible_events()
        if (wanted is None or any(_matches(event["type"], pattern) for pattern in wanted))
        and (success is None or success == (event["pending_webhooks"] == 0))
    ]
    return lists.show(found, params, "/v1/events")


def _matches(event_type: str, pattern: str) -> bool:
    """Match a type or a pattern; `charge.*` stands for all events of charges."""
    return event_type == pattern or (pattern.endswith("*") and event_type.startswith(pattern[:-1]))


def _retrieve_event(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    del params
    event = world.get("event", ids[0])
    if not world.is_visible(event):
        raise invalid(f"No such event: '{ids[0]}'", "resource_missing", "id", 404)
    return event


def _list_sessions(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    email = (params.get("customer_details") or {}).get("email")
    shown = _list("checkout.session", "customer", "payment_intent", "status")(
        world, params | {"limit": 100 if email else params.get("limit", 10)}, ids
    )
    if email:
        shown["data"] = [item for item in shown["data"] if (item["customer_details"] or {}).get("email") == email]
    return shown


def _attach(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    return customers.attach(world, payment_methods.method(world, ids[0]), _needed(params, "customer"))


def _needed(params: dict[str, Any], name: str) -> Any:
    """Return a parameter that the library marks as optional but this use requires."""
    if not params.get(name):
        raise invalid(f"Missing required param: {name}.", "parameter_missing", name)
    return params[name]


def _page(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    """Answer the private endpoint with which the Stripe CLI looks at a session's page."""
    del params
    return world.get("checkout.session", ids[0])


def _confirm_page(world: World, params: dict[str, Any], ids: list[str]) -> Obj:
    """Answer the private endpoint with which the Stripe CLI pays a session."""
    session = world.get("checkout.session", ids[0])
    total = session["amount_total"] or 0
    if int(params.get("expected_amount") or total) != total:
        raise invalid("The expected amount does not match.", "checkout_amount_mismatch", "expected_amount")
    method = payment_methods.method(world, params["payment_method"], "payment_method")
    billing = method["billing_details"]
    sessions.pay(world, session, method, sessions.Payment(email=billing["email"], name=billing["name"]))
    return session


_Row = tuple[str, str, str, Handler]
_ROWS: Final[tuple[_Row, ...]] = (
    (
        "POST",
        "checkout/sessions",
        "checkout._session_create_params.SessionCreateParams",
        lambda w, p, _: sessions.create(w, p),
    ),
    ("GET", "checkout/sessions", "checkout._session_list_params.SessionListParams", _list_sessions),
    ("GET", "checkout/sessions/:id", "", _retrieve("checkout.session")),
    (
        "POST",
        "checkout/sessions/:id",
        "checkout._session_update_params.SessionUpdateParams",
        _change("checkout.session", sessions.update),
    ),
    ("POST", "checkout/sessions/:id/expire", "", _act("checkout.session", sessions.expire)),
    (
        "GET",
        "checkout/sessions/:id/line_items",
        "checkout._session_list_line_items_params.SessionListLineItemsParams",
        _line_items,
    ),
    (
        "POST",
        "customers",
        "_customer_create_params.CustomerCreateParams",
        lambda w, p, _: customers.create_customer(w, p),
    ),
    ("GET", "customers", "_customer_list_params.CustomerListParams", _list("customer", "email")),
    ("GET", "customers/:id", "", _retrieve("customer")),
    (
        "POST",
        "customers/:id",
        "_customer_update_params.CustomerUpdateParams",
        lambda w, p, i: customers.update_customer(w, customers.customer(w, i[0], "id"), p),
    ),
    ("DELETE", "customers/:id", "", lambda w, _, i: customers.delete_customer(w, customers.customer(w, i[0], "id"))),
    (
        "GET",
        "customers/:id/payment_methods",
        "_customer_list_payment_methods_params.CustomerListPaymentMethodsParams",
        _customer_methods,
    ),
    (
        "POST",
        "payment_intents",
        "_payment_intent_create_params.PaymentIntentCreateParams",
        lambda w, p, _: payment_intents.create(w, p),
    ),
    (
        "GET",
        "payment_intents",
        "_payment_intent_list_params.PaymentIntentListParams",
        _list("payment_intent", "customer"),
    ),
    (
        "GET",
        "payment_intents/:id",
        "_payment_intent_retrieve_params.PaymentIntentRetrieveParams",
        _retrieve("payment_intent"),
    ),
    (
        "POST",
        "payment_intents/:id",
        "_payment_intent_update_params.PaymentIntentUpdateParams",
        _change("payment_intent", payment_intents.update),
    ),
    (
        "POST",
        "payment_intents/:id/confirm",
        "_payment_intent_confirm_params.PaymentIntentConfirmParams",
        _change("payment_intent", payment_intents.confirm),
    ),
    (
        "POST",
        "payment_intents/:id/cancel",
        "_payment_intent_cancel_params.PaymentIntentCancelParams",
        _change("payment_intent", payment_intents.cancel),
    ),
    ("GET", "charges", "_charge_list_params.ChargeListParams", _list("charge", "customer", "payment_intent")),
    ("GET", "charges/:id", "", _retrieve("charge")),
    ("POST", "refunds", "_refund_create_params.RefundCreateParams", lambda w, p, _: refunds.create(w, p)),
    ("GET", "refunds", "_refund_list_params.RefundListParams", _list("refund", "charge", "payment_intent")),
    ("GET", "refunds/:id", "", _retrieve("refund")),
    ("POST", "refunds/:id", "_refund_update_params.RefundUpdateParams", _change("refund", refunds.update)),
    ("POST", "refunds/:id/cancel", "", _act("refund", refunds.cancel)),
    ("GET", "disputes", "_dispute_list_params.DisputeListParams", _list("dispute", "charge", "payment_intent")),
    ("GET", "disputes/:id", "", _retrieve("dispute")),
    ("POST", "disputes/:id", "_dispute_update_params.DisputeUpdateParams", _change("dispute", disputes.update)),
    ("POST", "disputes/:id/close", "", _act("dispute", disputes.close)),
    (
        "GET",
        "balance_transactions",
        "_balance_transaction_list_params.BalanceTransactionListParams",
        _list("balance_transaction", "type", "source", "currency"),
    ),
    ("GET", "balance_transactions/:id", "", _retrieve("balance_transaction")),
    (
        "POST",
        "payment_methods",
        "_payment_method_create_params.PaymentMethodCreateParams",
        lambda w, p, _: payment_methods.create_method(w, p),
    ),
    ("GET", "payment_methods", "_payment_method_list_params.PaymentMethodListParams", _list_methods),
    ("GET", "payment_methods/:id", "", lambda w, _, i: payment_methods.method(w, i[0])),
    ("POST", "payment_methods/:id/attach", "_payment_method_attach_params.PaymentMethodAttachParams", _attach),
    ("POST", "payment_methods/:id/detach", "", _act("payment_method", customers.detach)),
    (
        "POST",
        "setup_intents",
        "_setup_intent_create_params.SetupIntentCreateParams",
        lambda w, p, _: setup_intents.create(w, p),
    ),
    (
        "GET",
        "setup_intents",
        "_setup_intent_list_params.SetupIntentListParams",
        _list("setup_intent", "customer", "payment_method"),
    ),
    ("GET", "setup_intents/:id", "_setup_intent_retrieve_params.SetupIntentRetrieveParams", _retrieve("setup_intent")),
    (
        "POST",
        "setup_intents/:id/confirm",
        "_setup_intent_confirm_params.SetupIntentConfirmParams",
        _change("setup_intent", setup_intents.confirm),
    ),
    (
        "POST",
        "setup_intents/:id/cancel",
        "_setup_intent_cancel_params.SetupIntentCancelParams",
        _change("setup_intent", setup_intents.cancel),
    ),
    ("GET", "events", "_event_list_params.EventListParams", _list_events),
    ("GET", "events/:id", "", _retrieve_event),
    (
        "POST",
        "webhook_endpoints",
        "_webhook_endpoint_create_params.WebhookEndpointCreateParams",
        lambda w, p, _: endpoints.create_endpoint(w, p),
    ),
    ("GET", "webhook_endpoints", "_webhook_endpoint_list_params.WebhookEndpointListParams", _list("webhook_endpoint")),
    ("GET", "webhook_endpoints/:id", "", _retrieve("webhook_endpoint")),
    (
        "POST",
        "webhook_endpoints/:id",
        "_webhook_endpoint_update_params.WebhookEndpointUpdateParams",
        _change("webhook_endpoint", endpoints.update_endpoint),
    ),
    ("DELETE", "webhook_endpoints/:id", "", _act("webhook_endpoint", endpoints.delete_endpoint)),
    ("POST", "products", "_product_create_params.ProductCreateParams", lambda w, p, _: catalog.create_product(w, p)),
    ("GET", "products", "_product_list_params.ProductListParams", _list("product", "active", "shippable", "url")),
    ("GET", "products/:id", "", _retrieve("product")),
    ("POST", "products/:id", "_product_update_params.ProductUpdateParams", _change("product", catalog.update_product)),
    ("POST", "prices", "_price_create_params.PriceCreateParams", lambda w, p, _: catalog.create_price(w, p)),
    ("GET", "prices", "_price_list_params.PriceListParams", _list("price", "active", "currency", "product", "type")),
    ("GET", "prices/:id", "", _retrieve("price")),
    ("POST", "prices/:id", "_price_update_params.PriceUpdateParams", _change("price", catalog.update_price)),
    ("GET", "account", "", lambda w, _p, _i: profile.account(w)),
    ("GET", "balance", "", lambda w, _p, _i: balance.balance(w)),
    (
        "POST",
        "billing_portal/sessions",
        "billing_portal._session_create_params.SessionCreateParams",
        lambda w, p, _: portal.create_portal(w, p),
    ),
    (
        "POST",
        "tax/calculations",
        "tax._calculation_create_params.CalculationCreateParams",
        lambda w, p, _: taxes.calculate(w, p),
    ),
    ("GET", "tax/calculations/:id", "", _retrieve("tax.calculation")),
    ("GET", "tax/transactions/:id", "", _retrieve("tax.transaction")),
    (
        "GET",
        "tax/associations/find",
        "tax._association_find_params.AssociationFindParams",
        lambda w, p, _: taxes.association(w, p),
    ),
    ("GET", "invoices", "_invoice_list_params.InvoiceListParams", _list("invoice", "customer", "status")),
    ("GET", "invoices/:id", "", _retrieve("invoice")),
    ("GET", "payment_pages/:id", ANYTHING, _page),
    ("POST", "payment_pages/:id/confirm", ANYTHING, _confirm_page),
)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("/v1/" + path.replace(":id", "([^/]+)"))


ROUTES: Final = tuple(Route(method, _pattern(path), params, handler) for method, path, params, handler in _ROWS)


def match(method: str, path: str) -> tuple[Route, list[str]] | None:
    """Return the endpoint and the ids of the path."""
    for route in ROUTES:
        found = route.pattern.fullmatch(path)
        if found is not None and route.method == method:
            return route, list(found.groups())
    return None


def preload() -> None:
    """Load the parameter classes of all endpoints, so that no first use waits, or finds that the library lacks one."""
    for route in ROUTES:
        if route.params not in {"", ANYTHING}:
            params.load(route.params)
