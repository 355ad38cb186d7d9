"""The rollout: accounts that are metered already. Pure; costs nothing while everybody is."""

import hashlib
from functools import lru_cache

from config.settings import Rollout

STEPS = 10_000
"""A hundredth of a percent: `percent` may be refined one day without moving anybody."""


@lru_cache(maxsize=65_536)
def position(account_id: str) -> int:
    """Return the account's own place from 0 to STEPS - 1, the same for ever: it is in once `percent` has passed it."""
    return int.from_bytes(hashlib.sha256(b"rollout:" + account_id.encode()).digest()[:8]) % STEPS


def is_in(rollout: Rollout, account_id: str) -> bool:
    """Tell whether an account is metered. The lists come first; a greater percent never moves anybody out."""
    if account_id in rollout.exclude:
        return False
    return (
        rollout.percent == 100
        or account_id in rollout.include
        or position(account_id) < rollout.percent * (STEPS // 100)
    )
