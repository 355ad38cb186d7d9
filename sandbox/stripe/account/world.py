"""All objects, the event log, the clock and the timers. No I/O: time, chance and whoever listens are handed in."""

import copy
import heapq
import random
import string
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from sandbox.stripe.account.errors import no_such
from sandbox.stripe.account.record import Record
from sandbox.stripe.account.settings import Live

Obj = dict[str, Any]
"""A Stripe object, all of it writable as JSON. Keys that begin with `_` are the simulator's own and never shown."""
Action = Callable[..., None]
"""Something that happens by itself: takes the world, and ids."""
Timer = tuple[float, int, str, tuple[Any, ...]]
"""When, in which order, the name of the action, and what it takes beside the world."""
ACTIONS: Final[dict[str, Action]] = {}
_NAMES: Final[dict[Action, str]] = {}
_ALPHABET: Final = string.ascii_letters + string.digits
# Lengths as Stripe's: what parses or stores ids should meet their true size.
_LENGTHS: Final = {
    "cs_test_a1": 56,
    "pi_3": 23,
    "ch_3": 23,
    "py_3": 23,
    "re_3": 23,
    "txn_3": 23,
    "cus_": 14,
    "prod_": 14,
    "req_": 14,
    "acct_1": 15,
}
_EVENT_WINDOW_S: Final = 30 * 86_400

PREFIXES: Final = {
    "checkout.session": "cs_test_a1",
    "payment_intent": "pi_3",
    "charge": "ch_3",
    "refund": "re_3",
    "dispute": "du_1",
    "balance_transaction": "txn_3",
    "customer": "cus_",
    "payment_method": "pm_1",
    "setup_intent": "seti_1",
    "event": "evt_1",
    "webhook_endpoint": "we_1",
    "product": "prod_",
    "price": "price_1",
    "item": "li_1",
    "billing_portal.session": "bps_1",
    "tax.calculation": "taxcalc_1",
    "tax.transaction": "tax_1",
    "tax_id": "txi_1",
    "invoice": "in_1",
}


class Cause(msgspec.Struct, frozen=True):
    """The API request that an event came from; both None for the dashboard, the bank and the customer."""

    request_id: str | None = None
    idempotency_key: str | None = None


def timer_action(name: str) -> Callable[[Action], Action]:
    """Let `World.later` do this. State files hold the name, so it stays whatever becomes of the function."""

    def register(action: Action) -> Action:
        ACTIONS[name] = action
        _NAMES[action] = name
        return action

    return register


def name_of(action: Action) -> str:
    """Name that state files hold for an action."""
    return _NAMES[action]


class World:
    """One Stripe account in test mode."""

    def __init__(
        self, clock: Callable[[], float], rng: random.Random, record: Record, live: Live, api_version: str
    ) -> None:
        """Begin an account; `clock` gives seconds since the epoch, and `rng` makes the ids."""
        self._clock, self._rng = clock, rng
        self.record, self.live, self.api_version = record, live, api_version
        self.clock_offset_s = 0.0
        self.objects: dict[str, dict[str, Obj]] = {kind: {} for kind in PREFIXES}
        self.cause = Cause()
        self.base_url = ""
        self.account_id = self.new_id("acct_1")
        self.on_event: Callable[[Obj], None] = lambda _event: None
        self.timers: list[Timer] = []
        """A heap."""
        self.timer_number = 0
        self.changed = False
        """There is something new to keep."""

    # -- time ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds since the epoch on the simulator's clock."""
        return self._clock() + self.clock_offset_s

    def now(self) -> int:
        """Return the same in whole seconds, as Stripe states times."""
        return int(self.time())

    def later(self, delay_s: float, action: Action, *given: Any) -> None:
        """Schedule an action for the time `delay_s` from now; 0 is before the present request is answered."""
        self.timer_number += 1
        heapq.heappush(self.timers, (self.time() + delay_s, self.timer_number, name_of(action), given))

    def run_due(self) -> None:
        """Run the actions that have become due, in the order of their time."""
        while self.timers and self.timers[0][0] <= self.time():
            _, _, name, given = heapq.heappop(self.timers)
            self.changed = True
            ACTIONS[name](self, *given)

    # -- objects ---------------------------------------------------------------------------------

    def new_id(self, prefix: str) -> str:
        """Return a fresh id with that prefix."""
        return prefix + "".join(self._rng.choices(_ALPHABET, k=_LENGTHS.get(prefix, 24)))

    def add(self, kind: str, fields: Obj, prefix: str | None = None, **own: Any) -> Obj:
        """Store a new object; `own` become its hidden fields."""
        made = (
            {"id": self.new_id(prefix or PREFIXES[kind]), "object": kind}
            | fields
            | {f"_{name}": value for name, value in own.items()}
        )
        self.objects[kind][made["id"]] = made
        return made

    def get(self, kind: str, wanted: Any, param: str | None = "id") -> Obj:
        """Return the object. Raises StripeError: 404 when the path named it, 400 when the parameter `param` did."""
        found = self.objects[kind].get(wanted)
        if found is None:
            raise no_such(kind, str(wanted), param)
        return found

    def find(self, kind: str, **fields: Any) -> Iterable[Obj]:
        """All objects with these fields, oldest first."""
        return [
            found
            for found in self.objects[kind].values()
            if all(found.get(name) == value for name, value in fields.items())
        ]

    def any_object(self, wanted: str) -> Obj | None:
        """Return the object of that id, of whatever kind."""
        return next((known[wanted] for known in self.objects.values() if wanted in known), None)

    # -- events ----------------------------------------------------------------------------------

    def emit(self, event_type: str, shown: Obj, previous: Obj | None = None) -> Obj:
        """Log an event with a snapshot of the object, and tell whoever listens."""
        data: Obj = {"object": public(shown)}
        if previous is not None:
            data["previous_attributes"] = previous
        cause = self.cause
        event = self.add(
            "event",
            {
                "api_version": self.api_version,
                "created": self.now(),
                "data": data,
                "livemode": False,
                "pending_webhooks": 0,
                "request": {"id": cause.request_id, "idempotency_key": cause.idempotency_key},
                "type": event_type,
            },
            failed=False,
        )
        self.on_event(event)
        return event

    def change(self, found: Obj, event_type: str | None, **fields: Any) -> None:
        """Set fields, and emit an event that names their former values."""
        previous = {
            name: copy.deepcopy(found.get(name))
            for name, value in fields.items()
            if found.get(name) != value and name[0] != "_"
        }
        found.update(fields)
        if event_type is not None:
            self.emit(event_type, found, previous if event_type.endswith(("updated", "refunded")) else None)

    def visible_events(self) -> list[Obj]:
        """Return the events of the last 30 days, which the API still shows, oldest first."""
        return [event for event in self.objects["event"].values() if self.is_visible(event)]

    def is_visible(self, event: Obj) -> bool:
        """Tell whether the API still shows the event."""
        return bool(event["created"] >= self.now() - _EVENT_WINDOW_S)


def public(found: Obj) -> Obj:
    """Copy an object as clients may see it."""
    return {name: copy.deepcopy(value) for name, value in found.items() if not name.startswith("_")}
