"""The counting process: one for all workers of a service, so that the vocabularies are loaded once.

It holds nothing that anybody would miss: who gets no answer counts by himself. Loading a vocabulary stops all of a
process for some 0.2 s, and counting takes a core; here neither touches a stream.
"""

import asyncio
import logging
import os
import signal
import socket
import struct

import msgspec

from proxy.gateway.counting.counter_client import ANSWER_SECONDS, COUNT, LARGEST_BYTES, LENGTH, Asking
from proxy.gateway.counting.vocabulary import RANKS_SHA256, TokenizerError, Vocabularies

AT_ONCE = max(4, os.cpu_count() or 1)
"""Askings that are read and counted at a time: as many texts are in memory."""
PEER = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""

log = logging.getLogger("tollkeeper.counting")


def serve_counter(listener: socket.socket) -> None:
    """Answer workers until the process is ended; whatever is under way is given up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody: workers still count while they drain
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(_Counter().serve(listener))


class _Counter:
    def __init__(self) -> None:
        self._vocabularies = Vocabularies()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def serve(self, listener: socket.socket) -> None:
        async with await asyncio.start_unix_server(self._serve_one, sock=listener) as server:
            await server.serve_forever()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while _is_ours(writer):
                (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if size > LARGEST_BYTES:
                    break
                async with self._room:
                    async with asyncio.timeout(ANSWER_SECONDS):  # who stopped in the middle keeps nobody's room
                        packed = await reader.readexactly(size)
                    counted = await asyncio.to_thread(self._count, packed)
                writer.write(COUNT.pack(counted))
                await writer.drain()
        except (OSError, EOFError):
            """The worker has gone, or has stopped."""
        except (msgspec.MsgspecError, UnicodeError, TokenizerError) as error:
            log.error("cannot count: %s", error)  # noqa: TRY400 - the worker counts by itself, and says what is wrong
        finally:
            writer.close()

    def _count(self, packed: bytes) -> int:
        asking = msgspec.msgpack.decode(packed, type=Asking)
        if asking.encoding not in RANKS_SHA256:
            raise TokenizerError(f"there are no ranks of {asking.encoding!r}")
        return self._vocabularies.count(
            asking.encoding, (text.decode("utf-8", "surrogatepass") for text in asking.texts)
        )


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Look at who asks: a process of our own user may; the name of the socket is no secret on this machine."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return bool(PEER.unpack(credentials)[1] == os.geteuid())
