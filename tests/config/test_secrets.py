"""Stripe's keys: both or neither, of the right mode, never without a webhook secret."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.errors import ConfigError
from config.secrets import notices_secret, stripe_keys, upstream_key
from config.settings import Settings

URLS = {
    "success_url": "https://app.example/credits?s={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://app.example/credits",
}
GOOD = {"STRIPE_API_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": "whsec_1"}


def settings(stripe: dict[str, Any] | None = None, **sections: Any) -> Settings:
    return msgspec.convert({"stripe": {**URLS, **(stripe or {})}, **sections}, Settings)


def test_nothing_configured_is_no_stripe() -> None:
    assert stripe_keys(Settings(), {}) is None
    assert notices_secret(Settings(), {}) is None


def test_keys_come_from_the_environment_and_two_secrets_rotate() -> None:
    found = stripe_keys(settings(), {**GOOD, "STRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old"})
    assert found is not None
    assert found.api_key.reveal() == "sk_test_1"
    assert [secret.reveal() for secret in found.webhook_secrets] == ["whsec_new", "whsec_old"]
    assert "sk_test_1" not in repr(found)


def test_keys_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("rk_test_2\n")
    (tmp_path / "hook").write_text("whsec_2\n")
    files = {"api_key_file": str(tmp_path / "key"), "webhook_secret_file": str(tmp_path / "hook")}
    found = stripe_keys(settings(files), {})
    assert found is not None
    assert found.api_key.reveal() == "rk_test_2"
    with pytest.raises(ConfigError, match="cannot be read"):
        stripe_keys(settings({"api_key_file": str(tmp_path / "none")}), {})


@pytest.mark.timeout(20)
def test_a_file_that_never_ends_holds_no_key() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        stripe_keys(settings({"api_key_file": "/dev/zero"}), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        upstream_key(msgspec.convert({"upstream": {"api_key_file": "/dev/zero"}}, Settings), {})


@pytest.mark.parametrize(
    ("environ", "stripe", "reason"),
    [
        ({"STRIPE_API_KEY": "sk_test_1"}, {}, "anybody could say that they paid"),
        ({**GOOD, "STRIPE_WEBHOOK_SECRET": " "}, {}, "anybody could say"),
        ({"STRIPE_WEBHOOK_SECRET": "whsec_1"}, {}, "is not set, but"),
        ({**GOOD, "STRIPE_WEBHOOK_SECRET": "secret"}, {}, "one or two whsec_"),
        ({**GOOD, "STRIPE_WEBHOOK_SECRET": "whsec_1,"}, {}, "one or two whsec_"),
        ({**GOOD, "STRIPE_WEBHOOK_SECRET": "whsec_1,whsec_2,whsec_3"}, {}, "one or two whsec_"),
        ({**GOOD, "STRIPE_API_KEY": "pk_test_1"}, {}, "is not an sk_"),
        ({**GOOD, "STRIPE_API_KEY": "sk_live_1"}, {}, "is a live key"),
        (GOOD, {"livemode": True}, "is a test key"),
        (GOOD, {"success_url": ""}, "stripe.success_url"),
        (GOOD, {"cancel_url": "//evil.com"}, "stripe.cancel_url"),
        (GOOD, {"success_url": "https://app.example@evil.com/"}, "stripe.success_url"),
        (
            {**GOOD, "STRIPE_API_KEY": "sk_live_1"},
            {"livemode": True, "api_base": "http://127.0.0.1:1"},
            "simulator in live mode",
        ),
    ],
)
def test_half_a_configuration_is_refused(environ: dict[str, str], stripe: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        stripe_keys(settings(stripe), environ)
    assert "sk_live_1" not in str(refused.value)


def test_prices_are_whole_cents() -> None:
    with pytest.raises(ConfigError, match="whole cents"):
        stripe_keys(settings(packages=[{"code": "odd", "usd": "0.001"}]), GOOD)


def test_notices_are_signed_or_not_sent() -> None:
    told = settings(notices={"url": "https://app.example/hooks"})
    with pytest.raises(ConfigError, match="NOTICES_SECRET"):
        notices_secret(told, {"NOTICES_SECRET": "short"})
    found = notices_secret(told, {"NOTICES_SECRET": "0123456789abcdef"})
    assert found is not None
    assert found.reveal() == "0123456789abcdef"
