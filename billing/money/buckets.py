"""Accounts are spread over a fixed number of buckets; a bucket's keys share a Redis Cluster slot."""

from binascii import crc_hqx
from zlib import crc32

BUCKETS = 16
"""Never change this on a live system: the number is part of every key and of balances.bucket."""
SLOTS = 16_384
"""Of every Redis Cluster."""


def bucket_of(account_id: str) -> int:
    """Return the bucket of an account: stable over processes, machines and releases."""
    return crc32(account_id.encode()) % BUCKETS


def slot_of_bucket(bucket: int) -> int:
    """Return the slot of a cluster that has the keys of a bucket: that of the tag in `{b17}:`."""
    return crc_hqx(f"b{bucket}".encode(), 0) % SLOTS
