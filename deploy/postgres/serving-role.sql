-- The role that serves, as docs/runbook.md makes it (T-1). For psql, as the owner of the tables, after every `tollkeeper migrate`:
-- it may be run again. SERVING_PASSWORD is in the environment.
\set ON_ERROR_STOP on
\getenv password SERVING_PASSWORD
SELECT 'CREATE ROLE tollkeeper_serves' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tollkeeper_serves') \gexec
ALTER ROLE tollkeeper_serves LOGIN PASSWORD :'password';
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tollkeeper_serves;
REVOKE UPDATE, DELETE ON transfers, audit_log, rate_cards, rate_activations, price_plans, plan_assignments FROM tollkeeper_serves;
REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM tollkeeper_serves;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO tollkeeper_serves;
GRANT EXECUTE ON FUNCTION keep_usage_month(text, integer, integer) TO tollkeeper_serves;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tollkeeper_serves;
REVOKE CREATE ON SCHEMA public FROM PUBLIC, tollkeeper_serves;
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE proowner = 'tollkeeper_serves'::regrole) THEN
    RAISE EXCEPTION 'the role that serves has functions of its own, which nothing of ours needs: look at them, then drop them';
  END IF;
  END $$;
GRANT tollkeeper_serves TO CURRENT_USER;
REASSIGN OWNED BY tollkeeper_serves TO CURRENT_USER;
