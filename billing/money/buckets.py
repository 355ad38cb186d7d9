"""Accounts are spread over a fixed number of buckets; a bucket's keys share a Redis Cluster slot."""

from zlib import crc32

BUCKETS = 16
"""Never change this on a live system: the number is part of every key and of balances.bucket."""


def bucket_of(account_id: str) -> int:
    """Return the bucket of an account: stable over processes, machines and releases."""
    return crc32(account_id.encode()) % BUCKETS
