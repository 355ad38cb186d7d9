"""Who may serve a request, and who is asked first."""

from collections import Counter
from typing import Any, cast

from config.settings import UpstreamEntry
from config.upstreams import keeps_objects, takes_tier
from proxy.gateway.upstream.circuit import Circuit
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Needs, can_serve, home_of, in_order


class Unconnected:
    """A member without connections."""

    def __init__(self, name: str, **entry: Any) -> None:
        self.name = name
        self.entry = UpstreamEntry(name=name, base_url="http://x/v1", **entry)
        self.circuit, self.share, self.in_flight = Circuit(), 0.0, 0
        self.keeps, self.tiers = keeps_objects(self.entry), takes_tier(self.entry)

    serves, load, begin, end = Member.serves, Member.load, Member.begin, Member.end


def member(name: str, **entry: Any) -> Member:
    return cast("Member", Unconnected(name, **entry))


def names(members: list[Member], needs: Needs, now: float = 0.0) -> list[str]:
    return [one.name for one in in_order(members, needs, now)]


def test_globs_region_tier_storing_and_sockets_each_leave_somebody_out() -> None:
    everyone = [
        member("openai"),
        member("eu", region="eu"),
        member("azure", dialect="azure", rate_card="a", models=("gpt-4o*",)),
        member("old", draining=True),
    ]

    def able(**needs: Any) -> set[str]:
        return {one.name for one in everyone if can_serve(one, Needs(**needs))}

    assert able(model="gpt-4o-mini") == {"openai", "eu", "azure"}
    assert able(model="o3") == {"openai", "eu"}
    assert able(model="gpt-4o", region="eu") == {"eu"}
    assert able(model="gpt-4o", tier=True) == able(model="gpt-4o", stores=True) == able(socket=True) == {"openai", "eu"}


def test_who_is_well_comes_first_and_nobody_is_left_out() -> None:
    a, b, c = member("a"), member("b"), member("c", weight=0)
    a.circuit.failed("key", 0.0, at_once=True)
    b.circuit.rest("gpt-4o", 0.0, 10.0)
    assert names([a, b, c], Needs("gpt-4o")) == ["c", "b", "a"]
    assert names([a, b, c], Needs("o3")) == ["b", "c", "a"]


def test_shares_follow_the_weights_and_who_is_busy_is_spared() -> None:
    members = [member("a", weight=300), member("b", weight=100)]
    served: Counter[str] = Counter()
    for _ in range(400):
        first = in_order(members, Needs(), 0.0)[0]
        first.begin()
        first.end()
        served[first.name] += 1
    assert served == {"a": 300, "b": 100}
    busy, free = member("busy"), member("free")
    busy.begin()
    assert names([busy, free], Needs()) == ["free", "busy"]


def test_a_home_whose_model_rests_is_asked_after_others() -> None:
    two = [member("a"), member("b")]
    needs = Needs("gpt-4o", home="acct_1")
    home = next(one for one in two if one.name == names(two, needs)[0])
    home.circuit.rest("gpt-4o", 0.0, 10.0)
    assert names(two, needs)[0] != home.name
    assert names(two, Needs("o3", home="acct_1"))[0] == home.name
    assert names(two, needs, 10.0)[0] == home.name


def test_a_home_stays_when_another_upstream_comes_for_most_accounts() -> None:
    two = [member("a"), member("b")]
    three = [*two, member("c")]
    accounts = [f"acct_{number}" for number in range(600)]
    before = {account: home_of(account, two).name for account in accounts}
    after = {account: home_of(account, three).name for account in accounts}
    moved = [account for account in accounts if before[account] != after[account]]
    assert all(after[account] == "c" for account in moved)
    assert 140 < len(moved) < 260
    assert 240 < Counter(before.values())["a"] < 360
    home = before["acct_1"]
    assert names(two, Needs(home="acct_1"))[0] == home
    next(one for one in two if one.name == home).circuit.failed("key", 0.0, at_once=True)
    assert names(two, Needs(home="acct_1"))[0] != home
