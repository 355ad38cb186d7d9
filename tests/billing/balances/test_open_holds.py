"""A hold that outlived its request is found, after a grace, and nobody else's is."""

from billing.balances.open_holds import GRACE_SECONDS, OpenHolds


class Held:
    def __init__(self, request_id: str, owner: object | None) -> None:
        self.request_id, self.owner = request_id, owner

    async def settle_stray(self) -> None:
        """Nothing is held really."""


def test_a_hold_whose_request_is_gone_is_stray_after_the_grace() -> None:
    holds, living = OpenHolds(), {"request"}
    alive, gone, detached = Held("a", "request"), Held("b", "gone"), Held("c", None)
    for hold in (alive, gone, detached):
        holds.by_id[hold.request_id] = hold
    assert holds.stray(living, 0) == []
    assert holds.stray(living, GRACE_SECONDS) == []
    assert holds.stray(living, GRACE_SECONDS + 1) == [gone]
    del holds.by_id["b"]
    assert holds.stray(living, GRACE_SECONDS + 2) == []


def test_a_request_that_comes_back_begins_its_grace_anew() -> None:
    holds = OpenHolds()
    hold = Held("a", "request")
    holds.by_id[hold.request_id] = hold
    assert holds.stray(set(), 0) == []
    assert holds.stray({"request"}, 10) == []
    assert holds.stray(set(), GRACE_SECONDS + 5) == []
    assert holds.stray(set(), 2 * GRACE_SECONDS + 6) == [hold]
