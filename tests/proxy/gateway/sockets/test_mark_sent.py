"""What a socket's response owes while that is written: who leaves, or cannot have it written, and whether it has begun."""

import asyncio
from types import SimpleNamespace

import pytest

from proxy.gateway.sockets.exchange import SocketExchange
from proxy.web.rejections import unavailable

AWAY = unavailable("Your balance cannot be written right now.", "store_unavailable")


@pytest.mark.parametrize(
    ("error", "at_work", "released"),
    [
        (None, True, False),
        (asyncio.CancelledError(), False, True),  # it is not sent any more, and no session knows of it
        (asyncio.CancelledError(), True, False),  # the session settles it at its end: the upstream works for it
        (AWAY, False, True),
        (AWAY, True, True),  # none of it is shown
    ],
)
async def test_it_is_released_unless_somebody_settles_it(
    error: BaseException | None, at_work: bool, released: bool
) -> None:
    done: list[str] = []

    async def wait_persisted() -> None:
        done.append("waited")
        if error is not None:
            raise error

    async def release() -> None:
        done.append("released")

    exchange = SocketExchange.__new__(SocketExchange)
    hold = SimpleNamespace(
        checkpoint_sent=lambda *, at_once: done.append(f"told {at_once}"),
        wait_persisted=wait_persisted,
        release=release,
    )
    exchange.hold = hold  # type: ignore[assignment]
    if error is None:
        await exchange.mark_sent(at_work=at_work)
    else:
        with pytest.raises(type(error)):
            await exchange.mark_sent(at_work=at_work)
    assert done == ["told True", "waited", *(["released"] if released else [])]
