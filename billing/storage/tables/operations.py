"""The SQL tables of operating: overrides, admins, the audit log, jobs' findings, daily finance.

Same metadata and units as tables.py.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from billing.storage.tables.core import BigId, metadata

flag_overrides = Table(
    "flag_overrides",
    metadata,
    Column("flag", String(40), primary_key=True),
    Column("value", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(120), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)
"""Kill switches that win over proxy.toml, as JSON values. Who set which and why is also in the audit log."""

admin_keys = Table(
    "admin_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(120), nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

admin_sessions = Table(
    "admin_sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("actor", String(120), nullable=False),
    Column("role", String(16), nullable=False),
    Column("key_id", String(40)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
"""Sign-ins to the ops page. A session of a key ends with its key."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(120), nullable=False),
    Column("role", String(16), nullable=False),
    Column("action", String(40), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("request_id", String(80), nullable=False),
    Column("ip", String(64), nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("previous_hash"),
    Index("ix_audit_log_subject", "subject", "id"),
)
"""Every admin change, numbered without gaps, each row's hash over the one before. Append-only (triggers)."""

job_runs = Table(
    "job_runs",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job", String(40), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("findings", Integer, nullable=False),
    Column("report", Text, nullable=False),
    Index("ix_job_runs_job", "job", "id"),
)

job_leases = Table(
    "job_leases",
    metadata,
    Column("job", String(40), primary_key=True),
    Column("owner", String(80), nullable=False),
    Column("until_ms", BigInteger, nullable=False),
    Column("requested_at", BigInteger),
)
"""The process that runs a job now (until when, by the database's clock); since when a run out of turn is asked for."""

findings = Table(
    "findings",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("run_id", BigInteger, nullable=False),
    Column("check", String(80), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("expected", BigInteger, nullable=False),
    Column("found", BigInteger, nullable=False),
    Index("ix_findings_run", "run_id"),
)
"""Findings of a run, in millicredits. Never repaired by the job that found it."""

finance_daily = Table(
    "finance_daily",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("purchased_millicredits", BigInteger, nullable=False),
    Column("deducted_millicredits", BigInteger, nullable=False),
    Column("cost_millicredits", BigInteger, nullable=False),
    Column("loss_millicredits", BigInteger, nullable=False),
    Column("liability_millicredits", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("given_away_millicredits", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("length(day) = 10", name="day_is_a_date"),
)
"""One row a UTC day. The present day's row is brought up to date while it runs. `given_away`: the part of the cost that
paid for usage which is free by decision.
"""

installation_secrets = Table(
    "installation_secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""Random values of this installation's own, made once and never shown: what is derived from one stays the same."""
