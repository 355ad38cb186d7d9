"""Seats of sockets by key and by address, and how fast a key may open more."""

import contextlib

import pytest

from proxy.gateway.workload.socket_seats import SocketSeats
from proxy.web.rejections import Rejection


def sit(seats: SocketSeats, key: str, address: str, stack: contextlib.ExitStack, **most: int) -> bool:
    try:
        stack.enter_context(seats.seat(key, address, **{"of_key": 0, "of_address": 0, **most}))
    except Rejection as rejection:
        assert (rejection.status, rejection.code) == (429, "too_many_sockets")
        return False
    return True


def test_a_key_and_an_address_have_so_many_seats_and_get_them_back() -> None:
    seats = SocketSeats()
    with contextlib.ExitStack() as stack:
        assert [sit(seats, "a", f"10.0.0.{n}", stack, of_key=3) for n in range(5)] == [True] * 3 + [False] * 2
        assert sit(seats, "b", "10.0.0.1", stack, of_key=3)
        assert not sit(seats, "c", "10.0.0.1", stack, of_address=2)
        assert sit(seats, "c", "10.0.0.9", stack, of_address=2)
        assert sit(seats, "c", "", stack, of_address=1)
        assert sit(seats, "d", "", stack, of_address=1)  # whose address is not known is not counted by it
        assert seats.taken == 7
    assert seats.taken == 0
    with contextlib.ExitStack() as stack:
        assert sit(seats, "a", "10.0.0.1", stack, of_key=1, of_address=1)


def test_a_key_opens_so_many_a_minute() -> None:
    seats, now, opened = SocketSeats(), 1_000.0, []
    for second in range(0, 120, 10):
        try:
            seats.count_handshake("a", 2, now + second)
        except Rejection as rejection:
            assert (rejection.status, rejection.code) == (429, "rate_limit_exceeded")
        else:
            opened.append(second)
    assert opened == [0, 10, 30, 60, 90]
    for _ in range(100):
        seats.count_handshake("b", 0, now)
    seats.count_handshake("c", 1, now)
    with pytest.raises(Rejection):
        seats.count_handshake("c", 1, now + 1)


def test_the_memory_of_handshakes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.gateway.workload.socket_seats.MOST_KEYS", 2)
    seats = SocketSeats()
    for key in ("a", "b", "c"):
        seats.count_handshake(key, 1, 1.0)
    seats.count_handshake("a", 1, 1.0)  # forgotten
