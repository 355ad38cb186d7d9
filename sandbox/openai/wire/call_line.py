"""The line of a call: what its session says goes to every sideband."""

import asyncio

from sandbox.openai.exchange.answer import Request
from sandbox.openai.exchange.record import Entry
from sandbox.openai.realtime.calls import Sideband
from sandbox.openai.wire.speaker import Host, Speaker


class CallLine(Speaker):
    """See Line in realtime/calls.py."""

    def __init__(self, request: Request, call_id: str, host: Host) -> None:
        """Take the request that created the call."""
        super().__init__(request, host)
        self._id = call_id
        self.sidebands: set[Sideband] = set()

    def write(self, data: bytes) -> None:
        """See Speaker."""
        for sideband in tuple(self.sidebands):
            sideband.write(data)

    async def drain(self) -> None:
        """See Speaker: nobody is waited for."""

    def close(self, *, rst: bool = False) -> None:
        """See Speaker: whoever listens is cut off, the call goes on."""
        for sideband in tuple(self.sidebands):
            sideband.close(rst=rst)

    async def hold(self) -> None:
        """See Speaker."""
        await asyncio.get_running_loop().create_future()

    def open_entry(self, raw: bytes, body: object) -> Entry:
        """See Channel; the record says which call it was."""
        entry = super().open_entry(raw, body)
        entry.call_id = self._id
        return entry

    def hang_up(self) -> None:
        """See Line."""
        self.lost()
        for sideband in tuple(self.sidebands):
            sideband.end()
