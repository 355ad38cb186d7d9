"""Client connections counted: by address, the idle ones closed first, the last ones kept for health."""

from proxy.web.connections import RESERVED_PER_ADDRESS, ConnectionCaps, Connections


class World:
    """Connections named by numbers; those that were closed for others."""

    def __init__(self, most: int, per_address: int = 0, trusted: tuple[str, ...] = ()) -> None:
        self.told: list[str] = []
        self.closed: list[int] = []
        self.connections = Connections(ConnectionCaps(most, per_address, trusted), self.told.append)

    def enter(self, number: int, peer: str, *, works: bool = True) -> str:
        place = self.connections.enter(number, peer, lambda: self.closed.append(number))
        if works:
            self.connections.work(number)
        return place


def test_an_address_has_so_many_and_its_idle_ones_make_room_first() -> None:
    world = World(100, 3)
    assert [world.enter(number, "192.0.2.1") for number in range(4)] == ["any"] * 3 + ["address"]
    assert (world.enter(9, "192.0.2.2"), world.told) == ("any", ["192.0.2.1"])
    world.connections.rest(1, lambda: world.closed.append(1))
    world.connections.rest(0, lambda: world.closed.append(0))
    assert (world.enter(5, "192.0.2.1"), world.closed) == ("any", [1])
    assert (world.enter(6, "192.0.2.1"), world.closed) == ("any", [1, 0])
    assert world.enter(7, "192.0.2.1") == "address"
    assert world.told == ["192.0.2.1"]  # once a minute
    world.connections.leave(5)
    assert world.enter(8, "192.0.2.1") == "any"


def test_a_customer_of_ipv6_is_one_address_and_a_proxy_of_ours_is_none() -> None:
    world = World(100, 2, ("10.0.0.0/8", "fd00::/8"))
    peers = ["2001:db8::1", "2001:db8::ffff", "2001:db8::2", "2001:db8:0:1::1", "::ffff:192.0.2.1", "192.0.2.1"]
    assert [world.enter(n, peer) for n, peer in enumerate(peers)] == ["any", "any", "address", "any", "any", "any"]
    assert world.enter(20, "192.0.2.1") == "address"
    for number in range(30, 40):
        assert world.enter(number, "10.1.2.3") == "any"
        assert world.enter(number + 20, "fd00::1") == "any"
        assert world.enter(number + 40, "") == "any"


def test_near_the_cap_the_longest_idle_goes_and_the_last_places_are_for_health() -> None:
    world = World(64)  # of which 4 are reserved
    for number in range(60):
        assert world.enter(number, f"192.0.2.{number}") == "any"
    for number in (7, 3):
        world.connections.rest(number, lambda number=number: world.closed.append(number))  # type: ignore[misc]
    assert (world.enter(100, "198.51.100.1"), world.closed) == ("any", [7])
    assert (world.enter(101, "198.51.100.1"), world.closed) == ("any", [7, 3])
    assert [world.enter(number, "198.51.100.2") for number in range(200, 205)] == ["health"] * 4 + ["full"]
    world.connections.leave(200)
    world.connections.leave(200)
    assert (world.enter(210, "198.51.100.3"), world.enter(211, "198.51.100.3")) == ("health", "full")


def test_no_address_takes_all_places_of_health() -> None:
    world = World(320)  # 20 reserved
    for number in range(300):
        world.enter(number, f"10.0.{number // 200}.{number % 200}")
    asked = [world.enter(number, "192.0.2.1") for number in range(1_000, 1_010)]
    assert asked == ["health"] * RESERVED_PER_ADDRESS + ["full"] * (10 - RESERVED_PER_ADDRESS)
    assert world.enter(2_000, "192.0.2.2") == "health"


def test_one_that_has_not_asked_for_anything_yet_is_idle_and_nothing_is_left_of_who_leaves() -> None:
    world = World(20, 2)
    assert world.enter(1, "192.0.2.1", works=False) == "any"
    assert world.enter(2, "192.0.2.1") == "any"
    assert (world.enter(3, "192.0.2.1"), world.closed) == ("any", [1])
    for number in (1, 2, 3, 4):
        world.connections.leave(number)
    assert len(world.connections) == 0
    assert world.enter(5, "192.0.2.1") == "any"
