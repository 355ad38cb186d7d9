"""Undoing a content coding that nobody asked for: what a client cannot read must not be passed, nor charged as read."""

import zlib

from proxy.gateway.upstream.interruption import UpstreamError

PLAIN = (b"", b"identity")
ZLIB_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 47}
"""Coding → zlib's window bits: 31 is gzip's header, 47 either header."""
PIECE = 4_194_304
"""Bytes that one chunk is decoded into at a time: what it can grow to is bounded by whoever collects it."""


class Decoder:
    """The body of one answer in a coding that zlib knows."""

    __slots__ = ("_window", "_zlib")

    def __init__(self, coding: bytes) -> None:
        """Begin a body. Raises UpstreamError for any other coding."""
        window = ZLIB_WINDOWS.get(coding)
        if window is None:
            raise UpstreamError("coding", sent=True)
        self._window, self._zlib = window, zlib.decompressobj(window)

    def decode(self, data: bytes, limit: int) -> bytes:
        """Decode the next bytes. Raises UpstreamError for broken ones, and for more than `limit` bytes."""
        parts, size = [], 0
        while data:
            try:
                part = self._zlib.decompress(data, PIECE)
            except zlib.error:
                raise UpstreamError("malformed", sent=True) from None
            parts.append(part)
            size += len(part)
            if size > limit:
                raise UpstreamError("too_large", sent=True)
            data = self._zlib.unconsumed_tail
            if self._zlib.eof and self._zlib.unused_data:  # another member follows
                data, self._zlib = self._zlib.unused_data, zlib.decompressobj(self._window)
        return b"".join(parts)

    @property
    def whole(self) -> bool:
        """True once the coded body has come to its end."""
        return self._zlib.eof


def decoder_of(coding: bytes) -> Decoder | None:
    """Find the decoder for a `content-encoding`; None for none. Raises UpstreamError for one that cannot be undone."""
    name = coding.strip().lower()
    return None if name in PLAIN else Decoder(name)
