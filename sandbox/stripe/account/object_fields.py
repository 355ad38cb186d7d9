"""The fields that each kind of object has at the pinned API version, with the values they begin with."""

import copy
from collections.abc import Sequence
from typing import Any, Final

Obj = dict[str, Any]
ADDRESS: Final[Obj] = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
BILLING: Final[Obj] = {"address": ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None}

_NULLS: Final[dict[str, Sequence[str]]] = {
    "customer": (
        "address business_name currency customer_account default_source description discount email individual_name "
        "name phone shipping test_clock"
    ).split(),
    "payment_intent": (
        "allowed_payment_method_types amount_details application application_fee_amount canceled_at "
        "cancellation_reason client_secret customer customer_account description excluded_payment_method_types hooks "
        "last_payment_error latest_charge managed_payments next_action on_behalf_of payment_details payment_method "
        "payment_method_configuration_details payment_method_options payment_record processing receipt_email review "
        "setup_future_usage shipping source statement_descriptor statement_descriptor_suffix transfer_data "
        "transfer_group"
    ).split(),
    "setup_intent": (
        "allowed_payment_method_types application cancellation_reason client_secret customer customer_account "
        "description excluded_payment_method_types flow_directions last_setup_error latest_attempt managed_payments "
        "mandate next_action on_behalf_of payment_method payment_method_configuration_details payment_method_options "
        "single_use_mandate"
    ).split(),
    "charge": (
        "application application_fee application_fee_amount balance_transaction customer description "
        "failure_balance_transaction failure_code failure_message on_behalf_of outcome payment_intent payment_method "
        "payment_method_details receipt_email receipt_number receipt_url review shipping source source_transfer "
        "statement_descriptor statement_descriptor_suffix transfer_data transfer_group"
    ).split(),
    "refund": (
        "balance_transaction charge customer customer_account description failure_balance_transaction failure_reason "
        "payment_intent payment_method reason receipt_number source_transfer_reversal transfer_reversal"
    ).split(),
    "dispute": ("intended_submission_method", "network_reason_code", "payment_intent"),
    "checkout.session": (
        "after_expiration allow_promotion_codes allowed_payment_method_types amount_subtotal amount_total "
        "billing_address_collection cancel_url client_reference_id client_secret collected_information consent "
        "consent_collection currency currency_conversion customer customer_account customer_creation customer_details "
        "customer_email excluded_payment_method_types integration_identifier invoice invoice_creation locale "
        "managed_payments origin_context payment_intent payment_link payment_method_collection "
        "payment_method_configuration_details permissions presentment_details recovered_from return_url "
        "saved_payment_method_options setup_intent shipping_address_collection shipping_cost submit_type subscription "
        "success_url total_details url wallet_options"
    ).split(),
    "product": (
        "default_price",
        "description",
        "package_dimensions",
        "shippable",
        "statement_descriptor",
        "tax_code",
        "unit_label",
        "url",
    ),
    "price": ("custom_unit_amount", "lookup_key", "nickname", "recurring", "tiers_mode", "transform_quantity"),
    "payment_method": ("customer", "customer_account"),
    "webhook_endpoint": ("application", "description"),
    "balance_transaction": ("description", "exchange_rate"),
    "item": ("description",),
}
_REST: Final[dict[str, Obj]] = {
    "customer": {
        "balance": 0,
        "delinquent": False,
        "invoice_prefix": "",
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "next_invoice_sequence": 1,
        "preferred_locales": [],
        "tax_exempt": "none",
    },
    "payment_intent": {
        "amount_capturable": 0,
        "amount_received": 0,
        "automatic_payment_methods": {"allow_redirects": "always", "enabled": True},
        "capture_method": "automatic_async",
        "confirmation_method": "automatic",
        "livemode": False,
        "metadata": {},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
    },
    "setup_intent": {
        "attach_to_self": False,
        "automatic_payment_methods": {"allow_redirects": "always", "enabled": True},
        "livemode": False,
        "metadata": {},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        "usage": "off_session",
    },
    "charge": {
        "amount_captured": 0,
        "amount_refunded": 0,
        "billing_details": BILLING,
        "calculated_statement_descriptor": "TOLLKEEPER SANDBOX",
        "captured": False,
        "disputed": False,
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "paid": False,
        "radar_options": {},
        "refunded": False,
        "status": "pending",
    },
    "refund": {"destination_details": None, "metadata": {}, "status": "succeeded"},
    "dispute": {
        "balance_transactions": [],
        "enhanced_eligibility_types": [],
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
    },
    "checkout.session": {
        "adaptive_pricing": {"enabled": False},
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "branding_settings": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "discounts": [],
        "livemode": False,
        "metadata": {},
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "phone_number_collection": {"enabled": False},
        "shipping_options": [],
        "status": "open",
        "tax_id_collection": {"enabled": False, "required": "never"},
        "ui_mode": "hosted_page",
    },
    "product": {
        "active": True,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "type": "service",
    },
    "price": {
        "active": True,
        "billing_scheme": "per_unit",
        "livemode": False,
        "metadata": {},
        "tax_behavior": "unspecified",
        "type": "one_time",
    },
    "payment_method": {"allow_redisplay": "unspecified", "billing_details": BILLING, "livemode": False, "metadata": {}},
    "webhook_endpoint": {"livemode": False, "metadata": {}, "status": "enabled"},
    "balance_transaction": {"balance_type": "payments", "fee": 0, "fee_details": [], "status": "pending"},
    "item": {"amount_discount": 0, "amount_tax": 0, "metadata": {}, "adjustable_quantity": None},
}


def blank(kind: str, **fields: Any) -> Obj:
    """All fields of the kind but `id` and `object`, with the given ones laid over them."""
    made: Obj = dict.fromkeys(_NULLS[kind]) | copy.deepcopy(_REST[kind]) | fields
    return dict(sorted(made.items()))


_CHECKS: Final[Obj] = {"address_line1_check": None, "address_postal_code_check": "pass", "cvc_check": "pass"}


def card_fields(
    brand: str, funding: str, country: str, last4: str, exp_month: int, exp_year: int, fingerprint: str
) -> Obj:
    """`card` of a payment method."""
    return {
        "brand": brand,
        "checks": _CHECKS,
        "country": country,
        "display_brand": {"amex": "american_express"}.get(brand, brand),
        "exp_month": exp_month,
        "exp_year": exp_year,
        "fingerprint": fingerprint,
        "funding": funding,
        "generated_from": None,
        "last4": last4,
        "networks": {"available": [brand], "preferred": None},
        "regulated_status": "unregulated",
        "three_d_secure_usage": {"supported": True},
        "wallet": None,
    }


def charged_card(card: Obj, amount: int, *, authenticated: bool) -> Obj:
    """`payment_method_details.card` of a charge."""
    secure = None
    if authenticated:
        secure = {
            "authentication_flow": "challenge",
            "electronic_commerce_indicator": "05",
            "exemption_indicator": None,
            "result": "authenticated",
            "result_reason": None,
            "transaction_id": "00000000-0000-0000-0000-000000000000",
            "version": "2.2.0",
        }
    shared = (
        "brand",
        "checks",
        "country",
        "exp_month",
        "exp_year",
        "fingerprint",
        "funding",
        "last4",
        "regulated_status",
        "wallet",
    )
    return {name: card[name] for name in shared} | {
        "amount_authorized": amount,
        "authorization_code": "123456",
        "extended_authorization": {"status": "disabled"},
        "incremental_authorization": {"status": "unavailable"},
        "installments": None,
        "mandate": None,
        "multicapture": {"status": "unavailable"},
        "network": card["brand"],
        "network_token": {"used": False},
        "network_transaction_id": "000000000000000",
        "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
        "three_d_secure": secure,
    }


_EVIDENCE: Final = (
    "access_activity_log billing_address cancellation_policy cancellation_policy_disclosure cancellation_rebuttal "
    "customer_communication customer_email_address customer_name customer_purchase_ip customer_signature "
    "duplicate_charge_documentation duplicate_charge_explanation duplicate_charge_id product_description receipt "
    "refund_policy refund_policy_disclosure refund_refusal_explanation service_date service_documentation "
    "shipping_address shipping_carrier shipping_date shipping_documentation shipping_tracking_number "
    "uncategorized_file uncategorized_text"
).split()


def evidence() -> Obj:
    """`evidence` of a dispute about which nothing was said yet."""
    return dict.fromkeys(_EVIDENCE) | {"enhanced_evidence": {}}


def page(data: list[Obj], url: str, *, has_more: bool) -> Obj:
    """Return a list object."""
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def metadata_after(present: dict[str, str], params: dict[str, Any]) -> dict[str, str]:
    """Metadata after an update: an empty value unsets a key, an empty hash all of them."""
    given = params.get("metadata")
    if given == "":
        return {}
    return {name: value for name, value in (present | (given or {})).items() if value != ""}
