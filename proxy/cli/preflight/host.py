"""Preflight's checks of this machine: disks, file limits, secrets' permissions."""

import os
import resource
import shutil
from pathlib import Path

from config.settings import Settings
from proxy.cli.preflight.site import Check, Site

GIB = 2**30
SPARE_FILES, FILES_UPSTREAM = 256, 2
"""Files of a worker beside its connections, and those of a connection to the upstream: the kernel is asked of it by a
second one (see UpstreamConnection)."""
READABLE_BY_OTHERS = 0o007
READABLE_BY_GROUP = 0o070


def host_checks(site: Site) -> list[Check]:
    """Check disks, file limits, secrets' permissions."""
    return [*_disk_checks(site), _files_check(site.settings), _secrets_check(site.settings)]


def _disk_checks(site: Site) -> list[Check]:
    settings = site.settings
    paths = {} if settings.redis.url else {"embedded.path": Path(settings.embedded.path)}
    if site.database.is_sqlite and site.database.url.database:
        paths["database.url"] = Path(site.database.url.database)
    checks = []
    for key, path in paths.items():
        place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(place).free / GIB
        short, writable = free < site.min_free_gib, os.access(place, os.W_OK)
        fix = (
            f"free some, or move {key} to another disk" if short else "" if writable else f"let this user write {place}"
        )
        checks.append(
            Check(
                "host",
                f"disk of {key}",
                "FAIL" if short or not writable else "PASS",
                f"{free:.1f} GiB free at {place}",
                fix,
            )
        )
    return checks


def _files_check(settings: Settings) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = settings.listen.max_connections + FILES_UPSTREAM * settings.upstream.max_connections + SPARE_FILES
    enough = hard == resource.RLIM_INFINITY or hard >= need
    fix = (
        ""
        if enough
        else "raise LimitNOFILE of the service (or ulimit -Hn), or lower listen. and upstream.max_connections"
    )
    return Check(
        "host", "open files", "PASS" if enough else "FAIL", f"a worker needs {need}, the hard limit here is {hard}", fix
    )


def _secrets_check(settings: Settings) -> Check:
    named = {
        "upstream.api_key_file": settings.upstream.api_key_file,
        "stripe.api_key_file": settings.stripe.api_key_file,
        "stripe.webhook_secret_file": settings.stripe.webhook_secret_file,
        "notices.secret_file": settings.notices.secret_file,
        "portal.service_key_file": settings.portal.service_key_file,
        "jobs.openai_admin_key_file": settings.jobs.openai_admin_key_file,
    }
    files = {key: Path(path) for key, path in named.items() if path and Path(path).exists()}
    modes = {key: path.stat().st_mode for key, path in files.items()}
    world = [key for key, mode in modes.items() if mode & READABLE_BY_OTHERS]
    group = [key for key, mode in modes.items() if mode & READABLE_BY_GROUP]
    if world:
        return Check("host", "secrets", "FAIL", f"every user here can open {', '.join(world)}", "chmod 600 those files")
    if group:
        return Check(
            "host",
            "secrets",
            "WARN",
            f"the group can open {', '.join(group)}",
            "chmod 600 those files, unless this is meant",
        )
    return Check(
        "host", "secrets", "PASS", f"{len(files)} secret files, closed to others" if files else "from the environment"
    )
