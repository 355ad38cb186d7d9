"""Puts one money bug into a served process. Python imports this by itself when the folder is on PYTHONPATH.

TK_BUG names it; SEEDED in seeded.py says in words what each is, and which check must find it.
"""

import importlib.abc
import importlib.machinery
import os
import sys


def stale_balance(scripts):
    script(scripts, b"amount > 0 and balance - held < amount", b"amount > 0 and balance < amount")


def hold_is_kept(scripts):
    script(scripts, b"redis.call('HINCRBY', account, 'held', int(-amount))", b"")


def charge_is_the_hold(scripts):
    script(scripts, b"local charged = due\n", b"local charged = amount\n")


def settled_twice(scripts):
    script(scripts, b"redis.call('DEL', hold)\n", b"")


def orphans_are_free(scripts):
    script(scripts, b"local due, record = tonumber(h[1]), h[2]", b"local due, record = 0, h[2]")


def script(scripts, before, after):
    load = scripts.load_scripts

    def spoiled():
        found = load()
        assert any(before in text for text in found.values())
        return {name: text.replace(before, after) for name, text in found.items()}

    scripts.load_scripts = spoiled


def floor(amounts):
    right = amounts.round_up
    amounts.round_up = lambda numerator, denominator, mode="exact": amounts.millicredits(
        max(0, right(numerator, denominator, mode) - bool(numerator % denominator))
    )


def input_is_free(model_rates):
    right = model_rates.scaled_cost
    model_rates.scaled_cost = lambda card, usage: (
        right(card, usage) - min(right(card, usage), usage.input_tokens * card.input)
    )


def reasoning_is_free(model_rates):
    right = model_rates.scaled_cost
    model_rates.scaled_cost = lambda card, usage: right(card, usage) - usage.reasoning_tokens * card.output


def cached_costs_twice(model_rates):
    right = model_rates.scaled_cost
    model_rates.scaled_cost = lambda card, usage: right(card, usage) + usage.cached_tokens * card.cached_input


def output_held_at_input(pricing):
    right = pricing._scaled_ceiling
    pricing._scaled_ceiling = lambda card, bounds: right(
        card._replace(output=card.input, image_output=card.input, audio_output=card.input), bounds
    )


def choices_count_once(plan):
    right = plan.bounds_of
    plan.bounds_of = lambda parsed, *rest, **named: right(parsed._replace(choices=1), *rest, **named)


def last_of_a_batch_is_lost(ledger):
    right = ledger.Ledger._book

    async def book(self, connection, entries):
        return await right(self, connection, entries[:-1] if len(entries) > 1 else entries)

    ledger.Ledger._book = book


def acknowledged_before_it_is_booked(flush):
    async def lane(journal, ledger, entries):
        await journal.acknowledge(entries)
        return len((await ledger.post_bookable(entries))[0])

    flush._flush_lane = lane


def tiers_cost_alike(models):
    right = models.Model.tier
    models.Model.tier = lambda self, _name: right(self, "default")


def an_error_in_a_stream_is_charged(settlement):
    right = settlement.decide_settlement

    async def decide(services, terms, plan, report, observed, *rest, **named):
        return await right(services, terms, plan, report, observed._replace(errored=False), *rest, **named)

    settlement.decide_settlement = decide


def leaving_is_free(settlement):
    decided(settlement, lambda decision, amount: amount(0) if decision.outcome == "client_gone" else None)


def a_cut_is_free(settlement):
    decided(settlement, lambda decision, amount: amount(0) if decision.outcome == "upstream_cut" else None)


def leaving_costs_a_bound(settlement):
    decided(
        settlement,
        lambda decision, amount: amount(decision.charge.amount * 40) if decision.source == "counted" else None,
    )


def decided(settlement, other):
    right = settlement.decide_settlement

    async def decide(*arguments, **named):
        decision = await right(*arguments, **named)
        amount = other(decision, settlement.Millicredits)
        return decision if amount is None else decision._replace(charge=decision.charge._replace(amount=amount))

    settlement.decide_settlement = decide


def calls_are_free(settlement):
    right = settlement._with_calls
    settlement._with_calls = lambda plan, usage, report, **named: right(plan, usage, report._replace(calls=()), **named)


def nothing_is_sent(request_hold):
    request_hold.RequestHold.checkpoint_sent = lambda self, **_: None
    request_hold.RequestHold.checkpoint_streamed = lambda self, tokens: None


def errors_are_charged(request_hold):
    right = request_hold.RequestHold.release

    async def release(self, *, refused=False):
        if self.is_open and refused:
            await self.settle_abandoned(0)
        else:
            await right(self, refused=refused)

    request_hold.RequestHold.release = release


def charged_under_two_ids(store):
    right = store.RedisBalances.settle

    async def settle(self, hold_id, account_id, due, record, tokens=-1):
        return await right(self, hold_id, account_id, due, record.replace(b'"req_', b'"rex_', 1), tokens)

    store.RedisBalances.settle = settle


PLACES = {
    "stale_balance": "billing.balances.redis.scripts",
    "hold_is_kept": "billing.balances.redis.scripts",
    "settled_twice": "billing.balances.redis.scripts",
    "orphans_are_free": "billing.balances.redis.scripts",
    "acknowledged_before_it_is_booked": "billing.ledger.flush",
    "reasoning_is_free": "billing.money.model_rates",
    "tiers_cost_alike": "billing.money.catalogue.models",
    "an_error_in_a_stream_is_charged": "proxy.gateway.settlement",
    "charge_is_the_hold": "billing.balances.redis.scripts",
    "floor": "billing.money.amounts",
    "input_is_free": "billing.money.model_rates",
    "cached_costs_twice": "billing.money.model_rates",
    "output_held_at_input": "billing.money.pricing",
    "choices_count_once": "proxy.gateway.plan",
    "last_of_a_batch_is_lost": "billing.ledger.ledger",
    "leaving_is_free": "proxy.gateway.settlement",
    "a_cut_is_free": "proxy.gateway.settlement",
    "leaving_costs_a_bound": "proxy.gateway.settlement",
    "calls_are_free": "proxy.gateway.settlement",
    "nothing_is_sent": "proxy.gateway.request_hold",
    "errors_are_charged": "proxy.gateway.request_hold",
    "charged_under_two_ids": "billing.balances.redis.store",
}


class Patching(importlib.abc.MetaPathFinder):
    def __init__(self, bug):
        self.bug, self.module = globals()[bug], PLACES[bug]

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            self.bug(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("TK_BUG") and "serve" in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, Patching(os.environ["TK_BUG"]))
