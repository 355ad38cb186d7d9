"""What an ending is charged by: the terms it began under, and nothing that may have changed since."""

from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput, decide_settlement
from proxy.observability.metrics import Metrics
from tests.support.plans import PRICES, plan


@pytest.mark.parametrize("insurance", [True, False])
async def test_the_insurance_is_the_one_the_request_began_with(insurance: bool) -> None:
    # no settings at all: whoever asks for those in force fails here
    services = cast("Services", SimpleNamespace(metrics=Metrics(CollectorRegistry()), tokenizer=Tokenizer()))
    ending = await decide_settlement(
        services,
        PricingTerms(PRICES, insurance),
        plan(),
        NO_REPORT,
        ObservedOutput([], errored=True),
        "upstream_cut",
    )
    assert (ending.outcome, ending.charge.amount == 0) == (("insured", True) if insurance else ("upstream_cut", False))
