"""A stateful machine over both balance stores, against a model of dicts and Fractions that shares nothing with them.

2,000 steps a push; a failure prints the steps. Everything goes the way of real money: SQL grants, outbox, journal, flush.
"""

import asyncio
import itertools
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing.money.amounts import Millicredits
from billing.money.holds import Gone, Held, Refused, Settled
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request

_names = itertools.count()
amounts = st.integers(0, 2_000)


class Model:
    """What an account should look like."""

    def __init__(self) -> None:
        self.balance = Fraction(0)
        self.holds: dict[str, Fraction] = {}
        self.charged: dict[str, Fraction] = {}

    @property
    def available(self) -> Fraction:
        return self.balance - sum(self.holds.values())


class Machine(RuleBasedStateMachine):
    """`make` opens a store; set by the test on a subclass."""

    redis_url = ""
    holds: Any = Bundle("holds")
    resolved: Any = Bundle("resolved")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="tkm"))
        self.books: Books = self.run(open_books(self.folder, self.redis_url))
        self.model: dict[str, Model] = {}
        self.corrected: set[str] = set()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        self.run(self.everything_agrees())
        self.run(close_books(self.books))
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @initialize(start=st.lists(st.integers(0, 3_000), min_size=2, max_size=2))
    def accounts(self, start: list[int]) -> None:
        for amount in start:
            account = self.run(self.books.account(amount))
            self.model[account] = Model()
            self.model[account].balance = Fraction(amount)

    def pick(self, number: int) -> str:
        return list(self.model)[number % len(self.model)]

    @rule(target=holds, number=st.integers(0, 1), amount=amounts)
    def hold(self, number: int, amount: int) -> Any:
        account, hold_id = self.pick(number), f"m{next(_names)}"
        model = self.model[account]
        found = self.run(self.books.store.hold(request(hold_id, account, amount)))
        if amount == 0 or amount <= model.available:
            model.holds[hold_id] = Fraction(amount)
            assert found == Held(model.balance, sum(model.holds.values()))
            return (account, hold_id)
        assert isinstance(found, Refused)
        assert (found.balance, found.held) == (model.balance, sum(model.holds.values()))
        assert found.source == ("in_flight" if model.balance >= amount else "balance")
        return multiple()

    @rule(hold=holds)
    def hold_again(self, hold: tuple[str, str]) -> None:
        account, hold_id = hold
        model = self.model[account]
        if hold_id in model.holds:
            found = self.run(self.books.store.hold(request(hold_id, account, 1)))
            assert found == Held(model.balance, sum(model.holds.values()))

    @rule(target=resolved, hold=consumes(holds), due=amounts)
    def settle(self, hold: tuple[str, str], due: int) -> Any:
        account, hold_id = hold
        model = self.model[account]
        spare = max(Fraction(0), model.available)
        held = model.holds.pop(hold_id)
        charged = min(Fraction(due), held + spare)
        model.balance -= charged
        model.charged[hold_id] = charged
        found = self.run(self.books.store.settle(hold_id, account, Millicredits(due), record(hold_id, account)))
        assert found == Settled(charged, due - charged, model.balance, sum(model.holds.values()))
        return hold

    @rule(target=resolved, hold=consumes(holds))
    def release(self, hold: tuple[str, str]) -> Any:
        account, hold_id = hold
        model = self.model[account]
        del model.holds[hold_id]
        assert self.run(self.books.store.release(hold_id, account)) == Settled(
            0, 0, model.balance, sum(model.holds.values())
        )
        return hold

    @rule(hold=resolved, due=amounts)
    def resolve_again(self, hold: tuple[str, str], due: int) -> None:
        account, hold_id = hold
        model = self.model[account]
        for found in (
            self.run(self.books.store.settle(hold_id, account, Millicredits(due), record(hold_id, account))),
            self.run(self.books.store.release(hold_id, account)),
        ):
            assert found == Gone(model.balance, sum(model.holds.values()))

    @rule(number=st.integers(0, 1), amount=st.integers(1, 2_000))
    def top_up(self, number: int, amount: int) -> None:
        account = self.pick(number)
        self.run(self.books.correct(account, amount))
        self.model[account].balance += amount

    @rule(number=st.integers(0, 1), amount=st.integers(1, 500))
    def take_back(self, number: int, amount: int) -> None:
        account = self.pick(number)
        self.run(self.books.correct(account, -amount))
        self.model[account].balance -= amount
        self.corrected.add(account)

    @rule()
    def flush(self) -> None:
        self.run(self.books.flush())

    @precondition(lambda self: not any(model.holds for model in self.model.values()))
    @rule()
    def reopen(self) -> None:
        self.run(self.books.reopen())

    @invariant()
    def figures_are_the_models(self) -> None:
        for account, model in self.model.items():
            reading = self.run(self.books.store.read(account))
            assert (reading.balance, reading.held) == (model.balance, sum(model.holds.values()))
            if account not in self.corrected:
                assert reading.balance - reading.held >= 0

    async def everything_agrees(self) -> None:
        """After a flush the ledger says what the model says, charge by charge."""
        await self.books.flush()
        for account, model in self.model.items():
            assert (await self.books.ledger.posted(account)).balance == model.balance
            rows = await self.books.ledger.usage_of(account, 10_000)
            assert {row.charge_id: row.charged_millicredits for row in rows} == model.charged
            effects = [row.effect for row in await self.books.ledger.transfers_of(account, 10_000)]
            assert sum(effects) == model.balance


PUSH = settings(
    max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_the_embedded_store_behaves_as_the_model() -> None:
    run_state_machine_as_test(Machine, settings=PUSH)


@pytest.mark.timeout(170)
def test_the_redis_store_behaves_as_the_model(redis_server: RedisServer) -> None:
    on_redis = type("OnRedis", (Machine,), {"redis_url": redis_server.url})
    run_state_machine_as_test(on_redis, settings=PUSH)
