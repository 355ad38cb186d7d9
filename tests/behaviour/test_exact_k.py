"""1,000 concurrent requests from two processes on one account with credit for exactly K: exactly K are served."""

import pytest

from tests.support.exact_k import check_exactly
from tests.support.servers import Sandbox, Tollkeeper


@pytest.mark.parametrize("affordable", [0, 1, 37, 999])
def test_exactly_k_of_a_thousand_concurrent_requests_are_served(
    stack: Tollkeeper, sandbox: Sandbox, affordable: int
) -> None:
    check_exactly(stack, sandbox, stack.account(), affordable)
