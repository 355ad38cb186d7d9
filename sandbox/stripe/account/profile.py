"""The account object."""

from sandbox.stripe.account.world import Obj, World


def account(world: World) -> Obj:
    """GET /v1/account."""
    return {
        "id": world.account_id,
        "object": "account",
        "business_profile": {"mcc": "5734", "name": "Tollkeeper sandbox", "support_email": None, "url": None},
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active", "us_bank_account_ach_payments": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": "US",
        "created": world.now(),
        "default_currency": "usd",
        "details_submitted": True,
        "email": "owner@example.com",
        "metadata": {},
        "payouts_enabled": True,
        "settings": {
            "branding": {"icon": None, "logo": None, "primary_color": None, "secondary_color": None},
            "card_payments": {"decline_on": None, "statement_descriptor_prefix": None},
            "dashboard": {"display_name": "Tollkeeper sandbox", "timezone": "Etc/UTC"},
            "payments": {"statement_descriptor": "TOLLKEEPER SANDBOX"},
        },
        "type": "standard",
    }
