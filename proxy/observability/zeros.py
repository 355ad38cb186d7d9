"""Counters shown before their first increase."""

from collections.abc import Iterable

from prometheus_client import Counter


def start_at_zero(counter: Counter, words: Iterable[str]) -> None:
    """Show a counter of one label under each word: `rate()` does not see the increase that makes a series appear."""
    for word in words:
        counter.labels(word)
