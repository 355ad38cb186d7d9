"""The proof proves itself: money bugs are put into the served product, one at a time, and a check must find each."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.load import STORM_ENVIRONMENT, Load, assert_books_match_the_record, restarts, storm
from tests.properties.metering_walk import walked
from tests.properties.proof.bad_weather import lost_replies
from tests.properties.proof.overspend import peers_cases, served
from tests.properties.proof.part import Figures
from tests.support.exact_k import check_exactly
from tests.support.servers import ROOT

START = 1_000_000_000
FEW, FEW_CASES = 37, 3
REQUESTS, KILLS, EXCHANGES, FAULTS = 120, 12, 240, 20
BUGS = Path(__file__).parent / "bugs"

NOT_SERVED = ("readyz is green", "serve ended with")
"""Words of a start that failed."""

Check = Callable[[Path, int, dict[str, str]], None]


def exactly(folder: Path, _seed: int, environment: dict[str, str]) -> None:
    """A thousand at once."""
    with served(folder, TOLLKEEPER_LISTEN__WORKERS="2", **environment) as (server, sandbox, _):
        check_exactly(server, sandbox, server.account(), FEW)


def peers(folder: Path, seed: int, environment: dict[str, str]) -> None:
    """The cases in which peers serve for nothing."""
    peers_cases(folder, FEW_CASES, seed, **environment)


def books(folder: Path, seed: int, environment: dict[str, str]) -> None:
    """A load, against the record."""
    with served(folder, **STORM_ENVIRONMENT, **environment) as (server, sandbox, _):
        account = server.account(str(START // 1_000))
        account.wait_balance(START)
        with Load(account, clients=6, seed=seed) as load:
            load.more(REQUESTS, 60)
        assert_books_match_the_record(account, sandbox, load, START)


def kills(folder: Path, seed: int, environment: dict[str, str]) -> None:
    """A storm of kills."""
    with served(folder, **STORM_ENVIRONMENT, **environment) as (server, sandbox, redis):
        account = server.account(str(START // 1_000))
        account.wait_balance(START)
        (load,) = storm([account], restarts(redis), KILLS, seed)
        assert_books_match_the_record(account, sandbox, load, START)


def weather(folder: Path, seed: int, environment: dict[str, str]) -> None:
    """Replies of every store and of upstream, lost."""
    lost_replies(folder, FAULTS, seed, **environment)


def walk(folder: Path, seed: int, environment: dict[str, str]) -> None:
    """A random walk over everything that is metered."""
    with walked(folder, seed, **environment) as found:
        assert not found.run(EXCHANGES).wrong


class Seeded(NamedTuple):
    """A bug by its name in bugs/sitecustomize.py, and the check that must find it."""

    name: str
    what: str
    check: Check


SEEDED = (
    Seeded("stale_balance", "a hold looks at the balance and not at what others hold", exactly),
    Seeded("hold_is_kept", "a settle gives nothing back of its hold", books),
    Seeded("charge_is_the_hold", "what was held is charged, not what was used", books),
    Seeded("floor", "a charge is rounded down", books),
    Seeded("input_is_free", "input is left out of the price", books),
    Seeded("last_of_a_batch_is_lost", "the flush acknowledges a charge that it did not book", books),
    Seeded("charged_under_two_ids", "a charge's id is not its request's", books),
    Seeded("nothing_is_sent", "nobody notes what is owed while a request runs", kills),
    Seeded("cached_costs_twice", "cached input is charged beside the input it is part of", walk),
    Seeded("output_held_at_input", "output is held for at the price of input", peers),
    Seeded("leaving_is_free", "who leaves pays nothing", walk),
    Seeded("leaving_costs_a_bound", "who leaves pays a bound", walk),
    Seeded("a_cut_is_free", "what upstream's cut had shown before is free", walk),
    Seeded("calls_are_free", "calls of hosted tools are left out of the price", walk),
    Seeded("errors_are_charged", "an upstream's error is charged", walk),
    Seeded("tiers_cost_alike", "every service tier is charged at the default one's price", walk),
    Seeded("an_error_in_a_stream_is_charged", "a stream that ends in an error before any output is charged", walk),
    Seeded("orphans_are_free", "what died requests owed is not charged", kills),
    Seeded("acknowledged_before_it_is_booked", "the flush forgets a charge before SQL has it", weather),
    Seeded("reasoning_is_free", "what a model thinks is left out of the price", walk),
    Seeded("settled_twice", "a settle that is asked for again is charged again", weather),
)


def harness(folder: Path, size: int, seed: int) -> Figures:
    """Put the first `size` of them in, one by one; fail where one is not found, or a check fails without any."""
    for place, check in enumerate({bug.check for bug in SEEDED[:size]}):
        (clean := folder / f"clean-{place}").mkdir()
        check(clean, seed, {})
    missed = [bug.what for place, bug in enumerate(SEEDED[:size]) if not is_found(bug, folder / str(place), seed)]
    assert not missed, missed
    return {"bugs": size, "found": size}


def is_found(bug: Seeded, folder: Path, seed: int) -> bool:
    """Tell whether its check finds a bug."""
    folder.mkdir()
    environment = {"PYTHONPATH": os.pathsep.join((str(BUGS), str(ROOT))), "TK_BUG": bug.name}
    try:
        bug.check(folder, seed, environment)
    except AssertionError as error:
        if any(words in str(error) for words in NOT_SERVED):
            raise  # it never served: that is no finding
        return True
    return False
