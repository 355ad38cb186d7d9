"""Where balances live: `embedded` (one process, SQLite journal) and `redis` (any number of processes)."""
