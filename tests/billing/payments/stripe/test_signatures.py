"""Webhook signatures: ours are the library's, and nothing else is believed."""

import pytest
from stripe import SignatureVerificationError, Webhook
from stripe._webhook import WebhookSignature

from billing.payments.stripe.signatures import BadSignature, WrongTime, sign, verify

BODY, SECRET, NOW = b'{"id": "evt_1", "object": "event"}', "whsec_one", 1_795_000_000


def test_ours_and_the_librarys_signatures_are_the_same() -> None:
    header = WebhookSignature.generate_signature_header(BODY.decode(), SECRET, NOW)
    assert sign(BODY, SECRET, NOW).split(",") == header.split(",")
    verify(BODY, header, [SECRET], NOW, 300)
    import time

    assert Webhook.construct_event(BODY, sign(BODY, SECRET, int(time.time())), SECRET)["id"] == "evt_1"
    with pytest.raises(SignatureVerificationError):
        Webhook.construct_event(BODY + b" ", sign(BODY, SECRET, int(time.time())), SECRET)


@pytest.mark.parametrize(
    ("header", "secrets", "now"),
    [
        (sign(BODY, "whsec_other", NOW), [SECRET], NOW),
        (sign(BODY + b" ", SECRET, NOW), [SECRET], NOW),
        (sign(BODY, SECRET, NOW), [SECRET], NOW + 301),
        (sign(BODY, SECRET, NOW), [SECRET], NOW - 301),
        (sign(BODY, SECRET, NOW), [], NOW),
        (sign(BODY, "", NOW), [""], NOW),
        ("", [SECRET], NOW),
        (f"t={NOW}", [SECRET], NOW),
        (f"v1={'0' * 64}", [SECRET], NOW),
        (f"t={NOW},v1=é", [SECRET], NOW),
        (f"t=x,{sign(BODY, SECRET, NOW)}", [SECRET], NOW),
        (sign(BODY, SECRET, NOW).replace("v1=", "v0="), [SECRET], NOW),
        (sign(BODY, SECRET, NOW) + ",v1=" + "0" * 3_000, [SECRET], NOW),
    ],
)
def test_a_wrong_signature_is_refused(header, secrets, now) -> None:
    with pytest.raises(BadSignature):
        verify(BODY, header, secrets, now, 300)


@pytest.mark.parametrize("seconds_ago", [301, -301, 3_600, -3_600])
def test_a_signature_of_another_time_says_so_and_one_that_is_none_does_not(seconds_ago: int) -> None:
    with pytest.raises(WrongTime) as found:
        verify(BODY, sign(BODY, SECRET, NOW - seconds_ago), [SECRET], NOW, 300)
    assert found.value.seconds_ago == seconds_ago
    with pytest.raises(BadSignature) as other:
        verify(BODY, sign(BODY, "whsec_other", NOW - seconds_ago), [SECRET], NOW, 300)
    assert not isinstance(other.value, WrongTime), "who has no secret of ours does not hear of our clock"


def test_two_secrets_and_two_signatures_overlap_in_a_rotation() -> None:
    verify(BODY, sign(BODY, "whsec_old", NOW), ["whsec_new", "whsec_old"], NOW, 300)
    both = sign(BODY, "whsec_gone", NOW) + "," + sign(BODY, SECRET, NOW).split(",")[1]
    verify(BODY, both, [SECRET], NOW, 300)
