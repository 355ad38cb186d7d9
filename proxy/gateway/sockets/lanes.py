"""Lanes of /v1/responses on a socket: which response an event of the upstream's is about. Pure.

A lane is `stream_id` as the upstream sees it: "" and an absent one may be one lane there or two, so what waits in
either may begin; the model says which, else the larger hold is taken. Nothing is ever overwritten, and an event that
cannot be attributed to one response ends none: a hold that stays is settled when the socket ends, money that was let
go is gone.
"""

import logging
from collections import deque
from itertools import count
from typing import Any

from proxy.gateway.sockets.exchange import SocketExchange

log = logging.getLogger("tollkeeper.sockets")

Lane = str | None
TWINS: dict[Lane, Lane] = {None: "", "": None}
KNOWN_ENDS = 1_000
"""Ids of responses that ended last: an end that is told once more begins nothing."""


class Lanes:
    """The responses of one socket, from being asked for to their end."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self._waiting: dict[Lane, deque[SocketExchange]] = {}
        self._running: dict[str, tuple[Lane, SocketExchange]] = {}
        self._ended: deque[str] = deque(maxlen=KNOWN_ENDS)
        self._unnamed = count()
        self._cancels = 0
        self._in_doubt = False
        """An error could not be attributed: what waits first in a lane may have been refused."""

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

    @property
    def at_work(self) -> list[SocketExchange]:
        """Responses that the upstream may be at work on: those that run, and the first of each lane where none does."""
        running = [exchange for _, exchange in self._running.values()]
        busy = {lane for lane, _ in self._running.values()}
        return [*running, *(one[0] for lane, one in self._waiting.items() if one and lane not in busy)]

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
        first = [one for waiting in heads for one in (waiting if self._in_doubt else [waiting[0]])]
        named = [one for one in first if model.startswith(one.hold.plan.parsed.model)]
        exchange = max(named or first, key=lambda one: one.hold.amount)
        if any(other == lane for other, _ in self._running.values()):
            log.warning("response %s began in a lane in which another one runs", response_id)
        next(waiting for waiting in heads if exchange in waiting).remove(exchange)
        self._running[response_id or f"unnamed {next(self._unnamed)}"] = (lane, exchange)
        return exchange

    def add(self, lane: Lane, event: dict[str, Any]) -> None:
        """Keep the output in an event that passed, with the response of its lane that began last, or is to begin."""
        running = next((one for other, one in reversed(self._running.values()) if other == lane), None)
        running = running or self._first_waiting(lane)
        if running is not None:
            running.passed.take(event)

    def _first_waiting(self, lane: Lane) -> SocketExchange | None:
        """Find the response that is to begin next in a lane."""
        waiting = self._waiting.get(lane) or self._waiting.get(TWINS.get(lane, lane))
        return waiting[0] if waiting else None

    def begin_late(self, lane: Lane, response_id: str, model: str) -> SocketExchange | None:
        """Begin the response whose end is the first that is heard of it: what passed belongs to it; None for none."""
        running = any(other == lane for other, _ in self._running.values())
        if running or response_id in self._ended or response_id in self._running:
            return None  # it is another's, or told once more
        return self.begin(lane, response_id, model)

    def closing(self, lane: Lane, response_id: str, *, cancelled: bool) -> SocketExchange | None:
        """Find the running response of that id, or the only one of its lane when the event names none.

        It stays here until it is settled and `drop`ped: who is interrupted meanwhile must find it.
        """
        if cancelled:
            self._cancels = max(0, self._cancels - 1)
        if response_id in self._running:
            return self._running[response_id][1]
        found = [one for other, one in self._running.values() if other == lane]
        return found[0] if len(found) == 1 and not response_id else None

    def drop(self, exchange: SocketExchange) -> None:
        """Forget a response that is settled, but for its id."""
        self._ended.extend(key for key, value in self._running.items() if value[1] is exchange)
        self._running = {key: value for key, value in self._running.items() if value[1] is not exchange}

    def refuse(self, lane: Lane) -> SocketExchange | None:
        """End the response whose `response.create` an error answers; None when it may be about anything else.

        A running response is never ended by an error: only its own closing event does that. While a cancel is not
        answered an error is taken for its answer; else, where nothing runs and one response alone waits first, for its.
        """
        if self._cancels:
            self._cancels -= 1
            return None
        if lane is not None:
            heads = [self._waiting.get(lane) or self._waiting.get(TWINS.get(lane, lane))]
            busy = any(other == lane for other, _ in self._running.values())
        else:
            heads = list(self._waiting.values())
            busy = bool(self._running)
        filled = [waiting for waiting in heads if waiting]
        if len(filled) == 1 and not busy:
            return filled[0].popleft()
        self._in_doubt = self._in_doubt or bool(filled)
        return None

    def clear(self) -> None:
        """Forget everything: the socket has ended."""
        self._running.clear()
        self._waiting.clear()
