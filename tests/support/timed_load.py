"""Customers at work in the background: every answer they get, with the time at which they asked."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support import web
from tests.support.servers import Account, within

PER_REQUEST = 5
"""What the request below costs, in millicredits: 8 input and 5 output tokens of gpt-4o-mini, 4.2 rounded up."""

PAUSE_SECONDS = 0.02
"""Between two requests of a thread: what is tested are many at once, not a machine without a free moment."""
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@dataclass(frozen=True)
class Reply:
    """One answer. Times are of time.monotonic()."""

    asked: float
    answered: float
    status: int
    code: str
    charged: int | None
    stream: bool = False


class Load:
    """Threads that ask again and again, each request on a connection of its own so that every worker gets some.

    `streams` of them have their answers streamed, and learn from the last chunk what each was charged.
    """

    def __init__(self, account: Account, threads: int = 4, streams: int = 0) -> None:
        self.replies: list[Reply] = []
        self._account, self._stop = account, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads - streams)]
        self._threads += [threading.Thread(target=self._run_streams) for _ in range(streams)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run_streams(self) -> None:
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        headers = {**self._account.headers, "x-credits-usage": "1"}
        while not self._stop.is_set():
            asked = time.monotonic()
            with web.stream(
                "POST", f"{self._account.server.v1}/chat/completions", json=body, headers=headers, timeout=30
            ) as answer:
                data, status = answer.read().decode(), answer.status_code
            code, charged = "", None
            if status == 200:
                *_, usage, end = [line.removeprefix("data: ") for line in data.splitlines() if line]
                assert end == "[DONE]", "an answer was not whole"
                charged = round(json.loads(usage)["usage"]["cost_credits"] * 1_000)
            else:
                code = json.loads(data)["error"]["code"]
            self.replies.append(Reply(asked, time.monotonic(), status, code, charged, stream=True))
            self._stop.wait(PAUSE_SECONDS)

    def _run(self) -> None:
        body = BODY
        while not self._stop.is_set():
            asked = time.monotonic()
            answer = web.post(
                f"{self._account.server.v1}/chat/completions", json=body, headers=self._account.headers, timeout=30
            )
            charged = answer.headers.get("x-credits-charged")
            self.replies.append(
                Reply(
                    asked,
                    time.monotonic(),
                    answer.status_code,
                    "" if answer.status_code == 200 else answer.json()["error"]["code"],
                    None if charged is None else round(float(charged) * 1_000),
                )
            )
            self._stop.wait(PAUSE_SECONDS)

    def since(self, moment: float) -> list[Reply]:
        """What was asked after a moment."""
        return [reply for reply in self.replies if reply.asked >= moment]

    def settle(self, wanted: Callable[[Reply], bool], *, quiet: float = 1.0) -> float:
        """Waits until every reply is as wanted and stays so; the seconds it took, which must be at most two."""
        at_most = within(2.0)
        began = time.monotonic()
        time.sleep(at_most + quiet)
        late = [reply for reply in self.since(began + at_most) if not wanted(reply)]
        assert not late, late[:3]
        after = self.since(began + at_most)
        assert len(after) > 10, "no load"
        return max((reply.asked for reply in self.since(began) if not wanted(reply)), default=began) - began

    def charged(self) -> int:
        """Millicredits, of all answers."""
        return sum(reply.charged or 0 for reply in self.replies)
