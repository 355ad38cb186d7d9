"""The world in a file, so that a simulator that is started again goes on where it was stopped.

Kept: objects, events, timers, the clock's offset, answers under idempotency keys, the record of money, and what was
on its way to webhook endpoints. Not kept: settings and ordered failures, so that a restart always ends them.
"""

import fcntl
import heapq
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from sandbox.stripe.account.record import Entry, Record
from sandbox.stripe.account.world import ACTIONS, PREFIXES, Obj, World
from sandbox.stripe.api.calls import Api, SavedResult
from sandbox.stripe.webhooks.deliveries import Deliveries, Sending

_FORMAT: Final = 1
_SENDINGS: Final = 1_000
_SHORTEST_PAUSE_S: Final = 0.2
_PAUSE_PER_WRITING: Final = 20


class UnreadableState(Exception):
    """Error of a file that is none of ours."""


class StateFile(msgspec.Struct, kw_only=True):
    """Content of the file."""

    format: int
    port: int
    base_url: str
    account_id: str
    clock_offset_s: float
    objects: dict[str, dict[str, Obj]]
    timers: list[tuple[float, int, str, list[Any]]]
    timer_number: int
    entries: list[Entry]
    saved: dict[str, SavedResult]
    sendings: list[Sending]


class StateKeeper:
    """Reader of the file at the start, and its writer when something has changed."""

    def __init__(self, path: Path, world: World, api: Api, record: Record, deliveries: Deliveries) -> None:
        """Open the file, and name the objects it keeps. Raises UnreadableState, OSError."""
        self._path = path
        self._world, self._api, self._record, self._deliveries = world, api, record, deliveries
        self._next = 0.0
        self._complained = False
        self._waiting: list[Sending] = []
        self._lock = _locked(path)
        self._raw = _read(path)
        self.port = 0 if self._raw is None else _decode(path, self._raw).port
        """The port of the last time: links lead there."""

    def restore(self, port: int) -> None:
        """Take over what the file holds, now that the world has its address; links to another one are put right."""
        self.port = port
        if self._raw is None:
            return
        world, former = self._world, _decode(self._path, self._raw).base_url
        kept = _decode(self._path, self._raw.replace(f"{former}/".encode(), f"{world.base_url}/".encode()))
        world.account_id, world.clock_offset_s = kept.account_id, kept.clock_offset_s
        world.objects |= kept.objects
        world.timers = [(due, number, name, tuple(given)) for due, number, name, given in kept.timers]
        heapq.heapify(world.timers)
        world.timer_number = kept.timer_number
        _join(world)
        self._record.entries = kept.entries
        self._api.saved = kept.saved
        self._waiting = kept.sendings
        self._raw = None

    def resume(self) -> None:
        """Send what was on its way, when the endpoints are there."""
        self._deliveries.resume(self._waiting)

    def write_soon(self) -> None:
        """Write if something has changed; the larger the file, the less often."""
        now = time.monotonic()
        if not self._world.changed or now < self._next:
            return
        try:
            self.write()
        except OSError as error:
            # going on is better than losing what is in memory; the next change tries again
            self._world.changed = True
            if not self._complained:
                sys.stderr.write(f"stripe sandbox: {self._path} cannot be written: {error}\n")
            self._complained = True
        self._next = now + max(_SHORTEST_PAUSE_S, (time.monotonic() - now) * _PAUSE_PER_WRITING)

    def write(self) -> None:
        """Put the file in the place of the former one. Raises OSError."""
        self._world.changed = False
        fresh = self._path.with_name(self._path.name + ".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self._kept()))
        fresh.replace(self._path)

    def close(self) -> None:
        """Write for the last time, and let another simulator have the file. Raises OSError."""
        try:
            self.write()
        finally:
            os.close(self._lock)

    def _kept(self) -> StateFile:
        world = self._world
        seen = {event["id"]: event for event in world.visible_events()}
        sendings = self._deliveries.sendings
        under_way = [sending for sending in sendings[:-_SENDINGS] if sending.state == "pending"]
        return StateFile(
            format=_FORMAT,
            port=self.port,
            base_url=world.base_url,
            account_id=world.account_id,
            clock_offset_s=world.clock_offset_s,
            objects=world.objects | {"event": seen},
            timers=[(due, number, name, list(given)) for due, number, name, given in world.timers],
            timer_number=world.timer_number,
            entries=self._record.entries,
            saved={key: saved for key, saved in self._api.saved.items() if saved.until > world.time()},
            sendings=under_way + sendings[-_SENDINGS:],
        )


def _locked(path: Path) -> int:
    """Lock the file, for two simulators would write their worlds over each other's. The lock ends with the process."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise OSError(f"{path} is in use by another simulator") from None
    return lock


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableState(f"{path} cannot be read: {error}") from None


def _decode(path: Path, raw: bytes) -> StateFile:
    try:
        kept = msgspec.json.decode(raw, type=StateFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableState(f"{path} is no state of this simulator ({error})") from None
    if (
        kept.format != _FORMAT
        or not kept.objects.keys() <= PREFIXES.keys()
        or not {name for _, _, name, _ in kept.timers} <= ACTIONS.keys()
    ):
        raise UnreadableState(f"{path} is the state of another version of this simulator")
    return kept


def _join(world: World) -> None:
    """Make objects that stand in others the same objects again, so that a change of one shows in both."""
    for item in world.objects["item"].values():
        item["price"] = world.objects["price"].get(item["price"]["id"], item["price"])
    for holder, name, kind in (
        ("checkout.session", "_items", "item"),
        ("dispute", "balance_transactions", "balance_transaction"),
    ):
        for found in world.objects[holder].values():
            found[name] = [world.objects[kind].get(one["id"], one) for one in found[name]]
