"""The upstreams that may serve a request, in the order in which they are asked. Pure, but for the clock it is given.

Health comes first, then weight, and among equals who has least in flight. What is to be stored goes to the account's
home, so that what one account keeps stands in one place.
"""

import hashlib
from collections.abc import Sequence
from math import log
from typing import NamedTuple

import msgspec

from proxy.gateway.upstream.member import Member


class Needs(NamedTuple):
    """Needs of a request that not every upstream can meet.

    `model` "": not known yet; `tier`: it names one that not all have; `stores`: something is kept there; `socket`: it
    is a WebSocket, or a call; `home`: an account whose objects stand together, "" where nothing is to be kept.
    """

    model: str = ""
    region: str = ""
    tier: bool = False
    stores: bool = False
    socket: bool = False
    home: str = ""


class Try(NamedTuple):
    """An upstream that was asked and did not serve. `may_cost`: millicredits that it may bill for that all the same."""

    upstream: str
    reason: str
    milliseconds: int
    may_cost: int = 0


def shown_tries(tries: Sequence[Try]) -> str:
    """Write tries as rows and the log show them: JSON, "" for none."""
    return msgspec.json.encode([one._asdict() for one in tries]).decode() if tries else ""


class Served(NamedTuple):
    """The upstream that serves a request: its name in records; who was asked before, as JSON; what these may bill."""

    upstream: str = ""
    tries: str = ""
    abandoned: int = 0


class Route:
    """The upstreams of one request: the first is asked, the others are there for when it does not serve."""

    __slots__ = ("members", "tries")

    def __init__(self, members: Sequence[Member]) -> None:
        """`members` in the order in which they are asked."""
        self.members = list(members)
        self.tries: list[Try] = []

    @property
    def first(self) -> Member:
        """The one to ask now."""
        return self.members[0]


def can_serve(member: Member, needs: Needs) -> bool:
    """Tell whether an upstream may get what is new."""
    entry = member.entry
    if entry.draining or (needs.region and entry.region != needs.region):
        return False
    if (needs.tier and not member.tiers) or (needs.stores and not member.keeps):
        return False
    if needs.socket and entry.dialect != "openai":
        return False
    return not needs.model or member.serves(needs.model)


def serves_all(member: Member) -> bool:
    """Tell whether nothing that a request may need, but a region, is missing at an upstream."""
    return member.plain and member.entry.models == ("*",) and not member.entry.draining


def in_order(members: Sequence[Member], needs: Needs, now: float) -> list[Member]:
    """Order those that can serve: home first where it is well, then by health and load."""

    def place(member: Member) -> tuple[bool, bool, bool, float]:
        circuit = member.circuit
        return bool(circuit.reason), circuit.rests(needs.model, now), not member.entry.weight, member.load

    found = sorted((member for member in members if can_serve(member, needs)), key=place)
    if needs.home and len(found) > 1:
        home = home_of(needs.home, found)
        if not home.circuit.reason and not home.circuit.rests(needs.model, now):
            found.remove(home)
            found.insert(0, home)
    return found


def home_of(account_id: str, members: Sequence[Member]) -> Member:
    """Return the upstream that an account's objects are made at: the same one for as long as it is there."""
    weighted = [member for member in members if member.entry.weight] or members
    return min(weighted, key=lambda member: _draw(account_id, member) / (member.entry.weight or 1))


def _draw(account_id: str, member: Member) -> float:
    """Draw an exponential number by a hash: the least of several, each by its weight, is each one's by its weight."""
    drawn = hashlib.sha256(f"{member.name}\0{account_id}".encode()).digest()
    return -log((int.from_bytes(drawn[:8], "big") + 1) / (2**64 + 1))
