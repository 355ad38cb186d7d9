"""Lanes of /v1/responses on a socket: which response an event of the upstream's is about. Pure.

A lane is `stream_id` as the upstream sees it: "" and an absent one may be one lane there or two, so what waits in
either may begin; the model says which, else the larger hold is taken. Nothing is ever overwritten, and an event that
cannot be attributed to one response ends none: a hold that stays is settled when the socket ends, money that was let
go is gone.
"""

import logging
from collections import deque
from itertools import count

from proxy.gateway.sockets.exchange import SocketExchange

log = logging.getLogger("tollkeeper.sockets")

Lane = str | None
TWINS: dict[Lane, Lane] = {None: "", "": None}


class Lanes:
    """The responses of one socket, from being asked for to their end."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self._waiting: dict[Lane, deque[SocketExchange]] = {}
        self._running: dict[str, tuple[Lane, SocketExchange]] = {}
        self._unnamed = count()
        self._cancels = 0

    def __len__(self) -> int:
        """Lanes that were ever used."""
        return len(self._waiting)

    def __contains__(self, lane: Lane) -> bool:
        """Tell whether a lane was used."""
        return lane in self._waiting

    @property
    def unfinished(self) -> list[SocketExchange]:
        """Responses that run or wait, in this order."""
        running = [exchange for _, exchange in self._running.values()]
        return [*running, *(one for waiting in self._waiting.values() for one in waiting)]

    def ask(self, lane: Lane, exchange: SocketExchange) -> None:
        """Queue a response that is held for at the end of its lane."""
        self._waiting.setdefault(lane, deque()).append(exchange)

    def cancel(self) -> None:
        """Expect that an error may answer: the client asked to cancel."""
        self._cancels += 1

    def begin(self, lane: Lane, response_id: str, model: str) -> SocketExchange | None:
        """Begin the first response that waits in a lane; None when nobody asked for one. `model`: its upstream name."""
        heads = [waiting for waiting in map(self._waiting.get, {lane, TWINS.get(lane, lane)}) if waiting]
        if not heads:
            return None
        named = [waiting for waiting in heads if model.startswith(waiting[0].hold.held_plan.parsed.model)]
        waiting = max(named or heads, key=lambda one: one[0].hold.amount)
        if any(other == lane for other, _ in self._running.values()):
            log.warning("response %s began in a lane in which another one runs", response_id)
        exchange = waiting.popleft()
        self._running[response_id or f"unnamed {next(self._unnamed)}"] = (lane, exchange)
        return exchange

    def add_text(self, lane: Lane, text: str) -> None:
        """Keep text that passed, with the response of its lane that began last."""
        running = next((one for other, one in reversed(self._running.values()) if other == lane), None)
        if running is not None:
            running.texts.append(text)

    def close(self, lane: Lane, response_id: str) -> SocketExchange | None:
        """End the running response of that id, or the only one of its lane when the event names none."""
        self._cancels = max(0, self._cancels - 1)
        found = self._running.pop(response_id, None)
        if found is not None:
            return found[1]
        keys = [key for key, (other, _) in self._running.items() if other == lane]
        if response_id or len(keys) != 1:
            return None
        return self._running.pop(keys[0])[1]

    def refuse(self, lane: Lane) -> SocketExchange | None:
        """End the response whose `response.create` an error answers; None when it may be about anything else.

        A running response is never ended by an error: only its own closing event does that. An error that names no
        lane is taken for the answer to a cancel, or, where nothing runs and one response alone waits first, for its.
        """
        if lane is None and self._cancels:
            self._cancels -= 1
            return None
        if lane is not None:
            heads = [self._waiting.get(lane) or self._waiting.get(TWINS.get(lane, lane))]
            busy = any(other == lane for other, _ in self._running.values())
        else:
            heads = list(self._waiting.values())
            busy = bool(self._running)
        filled = [waiting for waiting in heads if waiting]
        return filled[0].popleft() if len(filled) == 1 and not busy else None

    def clear(self) -> None:
        """Forget everything: the socket has ended."""
        self._running.clear()
        self._waiting.clear()
