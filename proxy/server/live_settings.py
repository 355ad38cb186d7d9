"""The settings in force in this process: the file's, under the overrides in SQL, swapped whole and at once.

A request takes the settings and the price book once, when it begins; both are replaced in one step of the event loop,
so no request sees half a change. What cannot be used is reported and changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from billing.ledger.flag_overrides import FlagOverride, FlagOverrides, in_force
from billing.ledger.flush import repeat
from billing.money.amounts import MoneyError
from billing.money.errors import BillingError, StoreUnavailable
from billing.storage.database import now_ms
from config.errors import ConfigError
from config.flags import DRAIN, FLAGS, full_name, value_of, with_drained, with_flags
from config.settings import Settings
from config.watch import LOOK_SECONDS, Edits
from proxy.observability.metrics import Metrics

log = logging.getLogger("tollkeeper.config")

SWITCHES = ("purchase_enabled", "charging_enabled", "auto_recharge")
FILE, APPLY, FOLLOWING, SILENCE, OVERRIDES, RATES = (
    "config",
    "apply",
    "following",
    "unwatched",
    "overrides_unread",
    "rates",
)
"""Subjects of a note: the file itself, file and overrides together, our own looking at either, the process that
watches the file for us, the active rate card."""
SILENT_SECONDS = 5.0
OVERRIDES_SECONDS = 2 * LOOK_SECONDS

Apply = Callable[[Settings], Awaitable[None]]
"""Puts settings in force. Raises StoreUnavailable or MoneyError, and then nothing may have changed."""


class LiveSettings:
    """Follows file and overrides, and applies what becomes of them."""

    def __init__(
        self, settings: Settings, edits: Edits | None, overrides: FlagOverrides, metrics: Metrics, apply: Apply
    ) -> None:
        """Begin with the `settings` this process started with; `edits` None when there is no file."""
        self.file = self.current = settings
        self._edits, self._overrides, self._metrics, self._apply = edits, overrides, metrics, apply
        self._rows: tuple[FlagOverride, ...] = ()
        self._problems: dict[str, str] = {}
        self._restart: tuple[str, ...] = ()

    async def begin(self) -> None:
        """Take the overrides before anything is served.

        Raises StoreUnavailable, and ConfigError when they do not fit the file.
        """
        self._rows = await self._overrides.all()
        await self._put_in_force()
        if APPLY in self._problems:  # without its overrides a kill switch would be off again
            problem = self._problems[APPLY]
            raise ConfigError(
                "overrides", "flags", problem, "clear the override with `tollkeeper flags clear`, or edit the file"
            )
        self._publish()

    async def follow(self) -> None:
        """Look for ever.

        File and overrides each in a task of its own: a database that hangs must not keep the file waiting.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                repeat(self.look, LOOK_SECONDS, "following the configuration", partial(self.report, FOLLOWING))
            )
            tasks.create_task(
                repeat(self.ask_overrides, OVERRIDES_SECONDS, "asking for overrides", partial(self.report, OVERRIDES))
            )

    async def look(self) -> int:
        """Take an edit of the file, let overrides end that are over, and put what becomes of both in force.

        Asks no database.
        """
        try:
            self._look_at_file()
            self._report_silence()
            await self._put_in_force()
        finally:
            self._publish()
        return 0

    async def ask_overrides(self) -> int:
        """Read the overrides; the next look puts them in force."""
        try:
            self._rows = await self._overrides.all()
        except StoreUnavailable as error:
            log.debug("overrides stay as they are: %s", error)  # /readyz reports the store
        return 0

    def report(self, cause: str, problem: str) -> None:
        """Report what is wrong with a part of the configuration; "" = nothing any more.

        Shown by /readyz and tollkeeper_config_valid.
        """
        if problem:
            self._problems[cause] = problem
        else:
            self._problems.pop(cause, None)

    def notes(self) -> dict[str, str]:
        """Remarks for /readyz beside being ready: edits that were refused, keys that wait for a restart, overrides in
        force.
        """
        found = dict(self._problems)
        if self._restart:
            found["restart"] = f"changed in the file, applied at the next restart: {', '.join(self._restart)}"
        found_in_force = in_force(self._rows, now_ms())
        ruling = sorted(full_name(flag) for flag in found_in_force if flag in FLAGS or flag.startswith(DRAIN))
        if ruling:
            found["overrides"] = f"set by hand, over the file: {', '.join(ruling)}"
        return found

    def overrides(self) -> Sequence[FlagOverride]:
        """Every override, ended ones too."""
        return self._rows

    def _look_at_file(self) -> None:
        """Take an edit that came to rest."""
        edit = self._edits.look() if self._edits is not None else None
        if edit is None:
            return
        if edit.settings is None:
            self._refuse(FILE, edit.problem)
            return
        self._problems.pop(FILE, None)
        if edit.restart and edit.restart != self._restart:
            log.warning("changed in the file, applied at the next restart: %s", ", ".join(edit.restart))
        self._restart = edit.restart
        if edit.settings != self.file:
            self.file = edit.settings
            self._metrics.count(self._metrics.configuration.config_reloads, "applied")
            log.info("the configuration file was edited; its live part applies now")

    def _report_silence(self) -> None:
        silent = self._edits is not None and time.time() - self._edits.looked_at > SILENT_SECONDS
        self.report(
            SILENCE,
            f"{SILENT_SECONDS:.0f} s long nobody looked at the file: edits do not reach this process" if silent else "",
        )

    async def _put_in_force(self) -> None:
        values = in_force(self._rows, now_ms())
        try:
            flags = {flag: value for flag, value in values.items() if flag in FLAGS}
            wanted = with_drained(with_flags(self.file, flags), values)
            if wanted != self.current:
                await self._apply(wanted)
                self.current = wanted
            self._problems.pop(APPLY, None)
        except (ConfigError, BillingError, MoneyError) as error:
            if self._problems.get(APPLY) != str(error):
                self._refuse(APPLY, str(error))

    def _refuse(self, cause: str, problem: str) -> None:
        self._problems[cause] = problem
        self._metrics.count(self._metrics.configuration.config_reloads, "refused")
        log.error("the configuration stays as it was: %s", problem)

    def _publish(self) -> None:
        metrics = self._metrics
        metrics.configuration.config_valid.set(0 if self._problems else 1)
        metrics.configuration.config_restart_keys.set(len(self._restart))
        metrics.configuration.config_checked_at.set(self._edits.looked_at if self._edits is not None else time.time())
        metrics.configuration.flag_overrides.set(len(in_force(self._rows, now_ms())))
        for flag in SWITCHES:
            metrics.configuration.flag.labels(flag).set(1 if value_of(self.current, flag) else 0)
        metrics.configuration.rollout_percent.set(self.current.rollout.percent)
