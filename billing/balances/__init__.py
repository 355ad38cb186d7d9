"""Balances and holds: `embedded` (one process, SQLite journal) and `redis` (any number of processes)."""
