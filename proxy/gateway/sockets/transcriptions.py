"""Transcription of the user's speech in a Realtime session: held for before it is heard, charged an item each.

Sound and its money go through these states:

    listening     One hold covers the sound that was sent and is not committed yet, at the dearest model that may be
                  transcribing. It grows with the sound, with some to spare.
    transcribing  `input_audio_buffer.committed` makes an item of it: from here on its charge is its own, at the model
                  in force at that moment, whatever the session becomes.
    done          Its transcript settles it, whenever that comes. One that failed is released.
    left          The end of the socket charges items without a transcript by the sound that was committed.
"""

from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.pricing import PriceBook
from billing.money.usage_record import Outcome
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.answers.reports import audio_report
from proxy.gateway.bodies.media import AUDIO_TOKENS_PER_SECOND, USUAL_TOKENS_PER_SECOND
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, Parsed
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.plan import Plan, make_plan, sold_model
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import ANOTHER_TRY, Begin, SocketExchange, hold_instead
from proxy.gateway.sockets.realtime_state import SessionSettings
from proxy.gateway.sockets.relay import Frame
from proxy.web.rejections import Rejection

BUFFER, TRANSCRIPT = "input_audio_buffer.", "conversation.item.input_audio_transcription."
HEARD_EVENTS = (BUFFER, TRANSCRIPT)
SPEECH_ENDPOINT = "/v1/audio/transcriptions"
ENDPOINT = REALTIME._replace(priced_as=SPEECH_ENDPOINT, drains=False)
KNOWN_ITEMS = 1_000
HEADROOM_MS = 60_000
"""Milliseconds of sound that are held for beyond what was sent: the hold need not grow with every frame."""


class Listening(NamedTuple):
    """The hold for sound that is not committed yet: for so many milliseconds, at this model, told so many bytes."""

    exchange: SocketExchange
    covers: int
    model: str
    hint: int


class Transcriptions:
    """The transcriptions of one session."""

    def __init__(self, services: Services, key: ApiKey, begin: Begin) -> None:
        """Nothing is heard yet."""
        self._services, self._key, self._begin = services, key, begin
        self.sent = self._taken = 0
        """Milliseconds of sound sent so far, and of those that are committed or thrown away."""
        self._hint = 0
        self._spoken: dict[str, tuple[int, int]] = {}
        self._listening: Listening | None = None
        self._items: dict[str, SocketExchange] = {}
        self._done: dict[str, None] = {}
        """Items whose transcript was charged: one that is said again is not charged again."""

    def check(self, model: str) -> None:
        """Raise Rejection for a model that is not sold for transcription."""
        services = self._services
        billing, prices = services.settings.billing, self._begin.terms.prices
        sold_model(model, SPEECH_ENDPOINT, self._key, prices, billing, services.today())

    @property
    def _buffered(self) -> int:
        return max(0, self.sent - self._taken)

    async def ensure(self, models: frozenset[str], hint: int) -> None:
        """Have a hold that covers the sound sent so far, at the dearest of these models, which is told `hint` bytes
        with it. Raises Rejection.
        """
        self._hint = hint
        if not models or not self._buffered:
            return
        listening = self._listening
        if (
            listening is not None
            and listening.exchange.hold.is_open
            and self._buffered <= listening.covers
            and hint <= listening.hint
            and listening.model in models
            and listening.exchange.hold.terms == self._begin.terms
            and (len(models) == 1 or listening.model == self._dearest(models).model.name)
        ):
            return
        await self._listen(self._dearest(models), self._buffered + HEADROOM_MS)

    async def take(self, name: str, frame: Frame, session: SessionSettings) -> None:
        """Take an event of the server's about the user's sound. Raises Rejection."""
        item = str(frame.get("item_id", ""))
        if name == BUFFER + "committed":
            await self._commit(item, session.transcriber)
        elif name == BUFFER + "cleared":
            self._taken = self.sent
        elif name == BUFFER + "speech_started":
            self._spoken[item] = (_milliseconds(frame, "audio_start_ms"), -1)
        elif name == BUFFER + "speech_stopped" and item in self._spoken:
            self._spoken[item] = (self._spoken[item][0], _milliseconds(frame, "audio_end_ms"))
        elif name == TRANSCRIPT + "completed":
            if item not in self._items and item not in self._done and session.transcriber:
                await self._take_over(item, session.transcriber, 0)  # it was not committed through us
            if item not in self._items:
                return
            try:
                await self._items[item].settle(audio_report(frame))
            finally:
                if not self._items[item].hold.is_open:
                    del self._items[item]
                    self._done[item] = None
                    if len(self._done) > KNOWN_ITEMS:
                        del self._done[next(iter(self._done))]
        elif name == TRANSCRIPT + "failed" and item in self._items:
            await self._items.pop(item).release("upstream_error")

    def charge_only_a_transcript(self, item: str) -> None:
        """Of this item nobody knows how long it was: what is held for it is no estimate of its cost."""
        if (exchange := self._items.get(item)) is not None:
            held = exchange.hold.plan
            exchange.hold.plan = held._replace(parsed=_with_length(held.parsed, 0))

    async def end(self, outcome: Outcome) -> None:
        """Settle what was committed, release what was only listened for: the socket has ended."""
        for exchange in self._items.values():
            await exchange.settle(NO_REPORT, outcome)
        if self._listening is not None:
            await self._listening.exchange.hold.release()
        self._items, self._listening = {}, None

    async def _commit(self, item: str, model: str) -> None:
        """Make an item of the sound so far: its own hold, at the model that transcribes it."""
        started, stopped = self._spoken.pop(item, (0, -1))
        if stopped > started:
            length, self._taken = stopped - started, max(self._taken, stopped)
        else:
            length, self._taken = self._buffered, self.sent
        if model and item not in self._items and item not in self._done:
            await self._take_over(item, model, length)

    async def _take_over(self, item: str, model: str, length: int) -> None:
        """Make what was listened for the item's own. Raises Rejection."""
        listening = self._listening
        covers = listening is not None and listening.exchange.hold.is_open and length <= listening.covers
        covers = covers and listening is not None and self._hint <= listening.hint
        if listening is None or listening.model != model or not covers:
            listening = await self._listen(self._plan(model, length, self._begin.terms.prices), length)
        self._listening = None
        exchange = listening.exchange
        held = exchange.hold.plan
        exchange.hold.plan = held._replace(parsed=_with_length(held.parsed, length))
        exchange.begin()
        self._items[item] = exchange
        await exchange.mark_sent(at_work=True)

    async def _listen(self, plan: Plan, covers: int) -> Listening:
        """Hold anew; what stood before is released. Raises Rejection, after an account of it."""
        before = self._listening

        async def hold(exchange: SocketExchange, wait: bool) -> None:
            exchange.context.key = self._key
            try:
                prices = exchange.hold.terms.prices
                await exchange.hold_for(self._plan(plan.model.name, covers, prices), self._key, wait=wait)
            except Rejection as rejection:
                if wait or rejection.status not in ANOTHER_TRY:
                    await exchange.refuse(rejection)
                raise

        exchange = await hold_instead(before.exchange if before is not None else None, self._begin, hold)
        self._listening = Listening(exchange, covers, plan.model.name, self._hint)
        return self._listening

    def _dearest(self, models: frozenset[str]) -> Plan:
        prices = self._begin.terms.prices
        plans = [self._plan(model, self._buffered + HEADROOM_MS, prices) for model in sorted(models)]
        return max(plans, key=lambda plan: plan.ceiling.amount)

    def _plan(self, model: str, milliseconds: int, prices: PriceBook) -> Plan:
        """Plan the transcription of so much sound. Raises Rejection."""
        seconds = -(-milliseconds // 1_000) + 1
        spoken = seconds * AUDIO_TOKENS_PER_SECOND
        parsed = Parsed(
            model=model,
            source=b"",
            input_bytes_bound=FRAMING_TOKENS + self._hint,
            audio_tokens=spoken,
            output_bound=spoken + FRAMING_TOKENS,
            milliseconds=seconds * 1_000,
        )
        services, parsed = self._services, _with_length(parsed, milliseconds)
        return make_plan(ENDPOINT, parsed, self._key, prices, services.settings, today=services.today())


def _with_length(parsed: Parsed, milliseconds: int) -> Parsed:
    """Request with what is charged for it where its transcript never comes."""
    audio = max(1, milliseconds * USUAL_TOKENS_PER_SECOND // 1_000)
    return parsed._replace(
        estimated_milliseconds=-(-milliseconds // 1_000) * 1_000, estimated_input=audio, estimated_audio=audio
    )


def _milliseconds(frame: Frame, name: str) -> int:
    value = frame.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
