"""Preflight's checks of SQL: schema, settings, our role's rights, backups. Reads only."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

from billing.money.errors import StoreUnavailable
from billing.storage.migrate import current_revision, newest_revision
from billing.storage.replica import ANOTHER, LOOK_SECONDS, NO_REPLICA, NOT_SEEN, Replica
from proxy.cli.preflight.site import Check, Offset, Site, error_text

OLDEST_POSTGRESQL = 140_000
TOO_MIGHTY = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    OR has_schema_privilege(current_user, current_schema(), 'CREATE')
    OR EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = current_schema()::regnamespace
               AND pg_has_role(current_user, relowner, 'USAGE'))
"""
"""Whether our role can drop the triggers that keep rows as they are, or plant one that its betters would run."""
SQLITE_HEAD = b"SQLite format 3\0"
REPLICA_LOOKS = 3
SAFE_COMMITS = ("on", "remote_apply", "remote_write", "local")


async def schema_checks(site: Site) -> list[Check]:
    """Check that migrations are at head; everything else in SQL needs that."""
    site.migrated = False
    url = site.database.url
    # connecting would make an empty one
    if site.database.is_sqlite and not Path(url.database or "").is_file():  # noqa: ASYNC240 - a command waits for it
        return [
            Check(
                "database",
                "migrations",
                "FAIL",
                f"{url.database} does not exist",
                "run `tollkeeper migrate`, or correct database.url",
            )
        ]
    try:
        found = await current_revision(site.database)
    except StoreUnavailable as error:
        return [
            Check(
                "database",
                "migrations",
                "FAIL",
                str(error),
                "start the database, and check database.url and its password",
            )
        ]
    if found != newest_revision():
        told = f"the schema is at {found}, this version needs {newest_revision()}"
        return [Check("database", "migrations", "FAIL", told, "take a backup, then run `tollkeeper migrate`")]
    site.migrated = True
    return [Check("database", "migrations", "PASS", f"at head ({found})")]


async def sql_checks(site: Site) -> list[Check]:
    """Check PostgreSQL's settings and our role's rights. Raises StoreUnavailable."""
    if site.database.is_sqlite:
        path = Path(site.database.url.database or "")
        return [Check("database", "settings", "PASS", f"SQLite at {path} (WAL, synchronous=FULL); for one machine")]
    async with site.database.read() as connection:

        async def setting(name: str) -> str:
            return str((await connection.execute(text(f"SHOW {name}"))).scalar_one())

        sent = time.time()
        theirs = float((await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())
        site.clocks.append(Offset("PostgreSQL", theirs - (sent + time.time()) / 2))
        number = int(await setting("server_version_num"))
        values = {name: await setting(name) for name in ("fsync", "full_page_writes", "synchronous_commit")}
        too_mighty = bool((await connection.execute(text(TOO_MIGHTY))).scalar_one())
    return [_version_check(number), *_durability_checks(values), _role_check(too_mighty=too_mighty)]


def _version_check(number: int) -> Check:
    old = number < OLDEST_POSTGRESQL
    fix = f"use PostgreSQL {OLDEST_POSTGRESQL // 10_000} or newer" if old else ""
    return Check(
        "database", "version", "FAIL" if old else "PASS", f"PostgreSQL {number // 10_000}.{number % 10_000}", fix
    )


def _durability_checks(values: dict[str, str]) -> list[Check]:
    checks = []
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        value = values[name]
        safe = value in SAFE_COMMITS
        fix = "" if safe else f"set `{name} = on`: without it a crash loses money that was acknowledged"
        checks.append(Check("database", name, "PASS" if safe else "FAIL", value, fix))
    return checks


def _role_check(*, too_mighty: bool) -> Check:
    if too_mighty:
        fix = (
            "serve as a role that owns and creates nothing: run deploy/postgres/serving-role.sql as the owner, "
            "after every migration (docs/runbook.md)"
        )
        return Check("database", "role", "WARN", "our role could drop or plant triggers of the ledger", fix)
    return Check("database", "role", "PASS", "our role can neither drop triggers nor plant any")


async def replica_checks(site: Site) -> list[Check]:
    """Check that what the settings name as a replica is one, and follows; no row where they name none."""
    conf = site.settings.database
    if not conf.replica_url:
        return []
    replica = Replica(site.database, conf.replica_url, 1, conf.timeout_seconds)
    try:
        for _ in range(REPLICA_LOOKS):  # a busy primary is ahead at each of them: what it had at the one before counts
            await replica.look(0)
            if replica.problem != NOT_SEEN:
                break
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await replica.close()
    if replica.used:
        return [Check("database", "replica", "PASS", f"is read from, {replica.lag_seconds:.1f} s behind the primary")]
    wrong = replica.problem in (NO_REPLICA, ANOTHER)
    fix = "name a replica of database.url in database.replica_url" if wrong else "see to it; pages read the primary"
    return [Check("database", "replica", "FAIL" if wrong else "WARN", f"it {replica.problem}", fix)]


async def backup_checks(site: Site) -> list[Check]:
    """Look for evidence of a backup of the last hours. Raises StoreUnavailable."""
    if site.backup is not None:
        return [await asyncio.to_thread(_backup_file, site.backup, site.backup_hours)]
    if site.database.is_sqlite or not site.migrated:
        fix = 'take one (`sqlite3 var/tollkeeper.db ".backup FILE"`) and name it: preflight --backup FILE'
        return [Check("database", "backup", "WARN", "no backup was shown to this command", fix)]
    async with site.database.read() as connection:
        mode = str((await connection.execute(text("SHOW archive_mode"))).scalar_one())
        query = text(
            "SELECT extract(epoch FROM last_archived_time), extract(epoch FROM last_failed_time) FROM pg_stat_archiver"
        )
        archived, failed = (await connection.execute(query)).one()
    if mode == "off":
        fix = "turn on WAL archiving, or take base backups and name the newest: preflight --backup FILE"
        return [
            Check("database", "backup", "WARN", "archive_mode is off, and no backup was shown to this command", fix)
        ]
    if archived is None or (failed is not None and failed > archived):
        return [
            Check("database", "backup", "FAIL", "archiving WAL fails", "look at archive_command and PostgreSQL's log")
        ]
    hours = (time.time() - float(archived)) / 3_600
    old = hours > site.backup_hours
    fix = "look at archive_command; set archive_timeout" if old else ""
    return [Check("database", "backup", "FAIL" if old else "PASS", f"WAL was archived {hours:.1f} h ago", fix)]


def _backup_file(path: Path, hours: int) -> Check:
    """Check the file, or the newest of a directory."""
    fix = f"back up now, and at least every {hours} hours (docs/runbook.md)"
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        if newest is None or not newest.stat().st_size:
            return Check("database", "backup", "FAIL", f"there is no backup at {path}", fix)
        age = (time.time() - newest.stat().st_mtime) / 3_600
        with newest.open("rb") as file:
            head = file.read(len(SQLITE_HEAD))
    except OSError as error:
        return Check("database", "backup", "FAIL", f"{path} cannot be read ({error.strerror})", fix)
    if age > hours:
        return Check("database", "backup", "FAIL", f"{newest} is {age:.0f} h old", fix)
    problem = _sqlite_problem(newest) if head == SQLITE_HEAD else ""
    if problem:
        return Check(
            "database", "backup", "FAIL", f"{newest}: {problem}", "a copied file is no backup: use sqlite3's .backup"
        )
    return Check("database", "backup", "PASS", f"{newest}, {age:.1f} h old")


def _sqlite_problem(path: Path) -> str:
    """Fault of a backup that is an SQLite file; "" when it is whole and ours."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
            connection.execute("SELECT count(*) FROM transfers").fetchone()
    except sqlite3.Error as error:
        return error_text(error)
    return "" if verdict == "ok" else str(verdict)
