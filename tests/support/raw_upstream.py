"""An upstream that answers every request with the same bytes, however wrong, and then closes."""

import contextlib
import socket
import threading
import time


class RawUpstream:
    """Listens on a thread of its own; set `reply`."""

    def __init__(self) -> None:
        self.reply = b""
        self.hold_open: threading.Event | None = None
        """Keep the connection open until this is set."""
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        request = b""
        while b"\r\n\r\n" not in request:
            part = connection.recv(65_536)
            if not part:
                return
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        length = (
            next(
                int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            )
            if b"content-length:" in head.lower()
            else 0
        )
        while len(body) < length:
            body += connection.recv(65_536)
        self.requests.append(head + b"\r\n\r\n" + body)
        self._answer(connection)
        if self.hold_open is not None:
            self.hold_open.wait(20)
        # an orderly end: say that nothing more comes, and wait until the other side has seen it
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass

    def _answer(self, connection: socket.socket) -> None:
        connection.sendall(self.reply)


class PausingUpstream(RawUpstream):
    """One that pauses between the pieces of its answer; set `pieces`."""

    def __init__(self, pause: float) -> None:
        self.pieces: list[bytes] = []
        self._pause = pause
        super().__init__()

    def _answer(self, connection: socket.socket) -> None:
        for number, piece in enumerate(self.pieces):
            if number:
                time.sleep(self._pause)
            connection.sendall(piece)
