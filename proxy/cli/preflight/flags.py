"""Preflight's check of the switches."""

from config.flags import FLAGS, full_name, value_of
from config.rollout import is_in
from proxy.cli.preflight.site import Check, Site
from proxy.web.times import iso_time


def flag_checks(site: Site) -> list[Check]:
    """Show every switch as it is in force now, and who set it."""
    rows = {row.flag: row for row in site.overrides}
    settings = site.settings
    odd = {
        "purchase_enabled": ("FAIL", "nothing can be bought: `tollkeeper flags set purchase_enabled true --reason ...`")
        if not settings.billing.purchase_enabled
        else None,
        "charging_enabled": ("FAIL", "nothing is charged: `tollkeeper flags set charging_enabled true --reason ...`")
        if not settings.billing.charging_enabled
        else None,
        "percent": ("WARN", "the rollout goes 5 → 25 → 100 (docs/runbook.md)")
        if settings.rollout.percent < 100
        else None,
    }
    checks = []
    for flag in FLAGS:
        value, row, said = value_of(settings, flag), rows.get(flag), odd.get(flag)
        until = f" until {iso_time(row.expires_at)}" if row is not None and row.expires_at is not None else ""
        by = f" (set by {row.actor}{until}: {row.reason})" if row is not None else ""
        found = f"{value if not isinstance(value, (list, tuple)) else ', '.join(value)}{by}"
        if said is not None:
            checks.append(Check("flags", full_name(flag), "FAIL" if said[0] == "FAIL" else "WARN", found, said[1]))
        elif row is not None:
            fix = f"write it into proxy.toml, then `tollkeeper flags clear {full_name(flag)} --reason ...`"
            checks.append(Check("flags", full_name(flag), "WARN", found, fix))
        else:
            checks.append(Check("flags", full_name(flag), "PASS", found))
    shut = [name for name in settings.rollout.include if not is_in(settings.rollout, name)]
    if shut:
        fix = "take them off one of the two lists"
        checks.append(
            Check("flags", "rollout.include", "WARN", f"both included and excluded: {', '.join(shut[:5])}", fix)
        )
    return checks
