-- The role that serves, as docs/runbook.md makes it (T-1). For psql, as the owner of the tables, after every `tollkeeper migrate`:
-- it may be run again. SERVING_PASSWORD is in the environment.
\set ON_ERROR_STOP on
\getenv password SERVING_PASSWORD
SELECT 'CREATE ROLE tollkeeper_serves' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tollkeeper_serves') \gexec
ALTER ROLE tollkeeper_serves LOGIN PASSWORD :'password';
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tollkeeper_serves;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO tollkeeper_serves;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tollkeeper_serves;
GRANT CREATE ON SCHEMA public TO tollkeeper_serves;
GRANT tollkeeper_serves TO CURRENT_USER;
ALTER TABLE usage OWNER TO tollkeeper_serves;
ALTER TABLE usage_default OWNER TO tollkeeper_serves;
