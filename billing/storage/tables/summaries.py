"""The SQL tables of sums by day, kept in the transaction that books what they sum up. Units and metadata of core.py.

Days are whole UTC days since 1970: the one on which the ledger booked a request, and the one on which it was asked for.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text

from billing.storage.tables.core import metadata

usage_days = Table(
    "usage_days",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("booked_day", Integer, primary_key=True, autoincrement=False),
    Column("asked_day", Integer, primary_key=True, autoincrement=False),
    Column("key_id", String(40), primary_key=True),
    Column("endpoint", String(40), primary_key=True),
    Column("model", String(120), primary_key=True),
    Column("upstream", String(40), primary_key=True, server_default=""),
    Column("charged", Boolean, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False),
    Column("loss_millicredits", BigInteger, nullable=False),
    Column("cost_millicredits", BigInteger, nullable=False),
    Index("ix_usage_days_key", "key_id", "asked_day"),
    Index("ix_usage_days_booked", "booked_day", postgresql_using="brin"),
    postgresql_with={"fillfactor": 80},
)
"""Usage of one account on a day. `charged`: whether it was charged anything; what was not is a row of its own.

Whatever retention drops stays in it. `usage_daily` has the same of dropped rows only, and is read for days before
`summaries.since_day`.
"""

model_days = Table(
    "model_days",
    metadata,
    Column("asked_day", Integer, primary_key=True, autoincrement=False),
    Column("model", String(120), primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False),
    Column("cost_millicredits", BigInteger, nullable=False),
    postgresql_with={"fillfactor": 50},
)
"""Usage of everybody on a day, by model. In parts by bucket: flushers of different buckets wait for each other less."""

books_days = Table(
    "books_days",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("recognised", BigInteger, nullable=False),
    Column("deferred", BigInteger, nullable=False),
    Column("outstanding", BigInteger, nullable=False),
    Column("overdrawn", BigInteger, nullable=False),
    Column("adjusted", BigInteger, nullable=False),
    Column("made_at", BigInteger, nullable=False),
)
"""The books of all accounts at the end of a booked day, the last of a month. Written behind its `books_accounts`.

Amounts as in a Position (billing/money/revenue_recognition.py).
"""

books_accounts = Table(
    "books_accounts",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
)
"""An account's lots and consumption at the end of a day, as JSON; of accounts that moved since their row before."""

summaries = Table(
    "summaries",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("since_day", Integer, nullable=False),
)
"""The booked day from which on sums are whole. What was booked before is summed from single rows and `usage_daily`."""
