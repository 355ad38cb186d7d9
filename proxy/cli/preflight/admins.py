"""Preflight's checks of owners, and of the audit chain."""

from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog
from billing.storage.database import now_ms
from proxy.cli.preflight.site import Check, Site


async def admin_checks(site: Site) -> list[Check]:
    """Check that somebody may administer, and nobody changed what was done. Raises StoreUnavailable."""
    keys = await Admins(site.database).everyone()
    owners = [
        key
        for key in keys
        if key.role == "owner" and key.revoked_at is None and (key.expires_at is None or key.expires_at > now_ms())
    ]
    if owners:
        checks = [Check("admin", "owner", "PASS", f"{len(owners)} owner keys")]
    elif site.settings.admin.oidc_issuer:
        found = f"no owner key; {site.settings.admin.oidc_issuer} decides who is owner"
        checks = [Check("admin", "owner", "WARN", found, "keep one owner key in a safe, for when the issuer is away")]
    else:
        fix = "`tollkeeper admin create NAME --role owner`"
        checks = [Check("admin", "owner", "FAIL", "nobody has an owner key", fix)]
    verdict = await AuditLog(site.database).verify()
    if verdict.problem:
        fix = "somebody changed the database by hand: keep a copy, find out who, restore from a backup"
        return [*checks, Check("admin", "audit chain", "FAIL", verdict.problem, fix)]
    return [*checks, Check("admin", "audit chain", "PASS", f"{verdict.rows} rows, head {verdict.head.hash[:12]}")]
