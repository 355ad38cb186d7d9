"""Append-only tables refuse what would replace a row (SQLite); a function makes the months of usage (PostgreSQL)."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SAME_ROW = {
    "transfers": ("id = NEW.id", "kind = NEW.kind AND reference_id = NEW.reference_id"),
    "audit_log": ("id = NEW.id", "previous_hash = NEW.previous_hash"),
    "rate_cards": ("id = NEW.id",),
    "rate_activations": ("id = NEW.id",),
}
"""What makes a row of an append-only table the same as one that is there: `INSERT OR REPLACE` would delete that one."""


def upgrade() -> None:
    """Close the third way to change a row, and let who serves own nothing."""
    if op.get_bind().dialect.name == "postgresql":
        _let_months_be_made()
        return
    for table, same in SAME_ROW.items():
        there = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {condition})" for condition in same)  # noqa: S608 - names of ours
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {there} "
            "BEGIN SELECT RAISE(ABORT, 'there is such a row already, and it is never changed or replaced'); END"
        )


def _let_months_be_made() -> None:
    """One function, run with its owner's rights: the role that serves need own no table and create nothing.

    The months' steps are billing/storage/partitions.py's. `pg_temp` stands last, so that no temporary table is taken
    for one of ours.
    """
    schema = op.get_bind().exec_driver_sql("SELECT current_schema()").scalar_one()
    op.execute(
        f"""
        CREATE FUNCTION keep_usage_month(step text, year integer, month integer) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = "{schema}", pg_temp AS $$
        DECLARE
            starts timestamptz := make_timestamptz(year, month, 1, 0, 0, 0, 'UTC');
            first bigint := extract(epoch FROM starts) * 1000;
            following bigint := extract(epoch FROM (starts AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC')
                * 1000;
            name text := format('usage_%s_%s', year, lpad(month::text, 2, '0'));
            filled boolean;
        BEGIN
            IF step = 'move' THEN
                LOCK TABLE usage_default IN ACCESS EXCLUSIVE MODE;
                EXECUTE format('CREATE TABLE %I (LIKE usage_default INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
                EXECUTE format('WITH moved AS (DELETE FROM usage_default WHERE created_at >= %s AND created_at < %s '
                    'RETURNING *) INSERT INTO %I SELECT * FROM moved', first, following, name);
                EXECUTE format('ALTER TABLE usage ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                    name, first, following);
            ELSIF step = 'fence' THEN
                ALTER TABLE usage_default DROP CONSTRAINT IF EXISTS usage_default_fence;
                EXECUTE format('ALTER TABLE usage_default ADD CONSTRAINT usage_default_fence '
                    'CHECK (NOT (created_at >= %s AND created_at < %s)) NOT VALID', first, following);
            ELSIF step = 'validate' THEN
                ALTER TABLE usage_default VALIDATE CONSTRAINT usage_default_fence;
            ELSIF step = 'make' THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF usage FOR VALUES FROM (%s) TO (%s)',
                    name, first, following);
            ELSIF step = 'unfence' THEN
                ALTER TABLE usage_default DROP CONSTRAINT IF EXISTS usage_default_fence;
            ELSIF step = 'drop' THEN
                EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', name);
                EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', name) INTO filled;
                IF filled THEN
                    RETURN false;
                END IF;
                EXECUTE format('DROP TABLE %I', name);
            ELSE
                RAISE EXCEPTION 'no such step: %', step;
            END IF;
            RETURN true;
        END $$
        """  # noqa: S608 - the schema's own name
    )
    op.execute("REVOKE EXECUTE ON FUNCTION keep_usage_month(text, integer, integer) FROM PUBLIC")
