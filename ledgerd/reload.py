"""SIGHUP: the settings are read again, and what may change in a running daemon changes.

Rules of this file:

- All or nothing: settings that contradict themselves, a file that cannot be read, a certificate that does not fit its
  key: any of these leaves everything as it was, with an error in the log and in the status line.
- `Config` stays frozen. One new struct takes the place of the old in one step, with `RELOADABLE` settings from the new
  source and all others as they were: nobody sees half of a change, or a setting that is not in force.
- What changed and is not reloadable is named, so that nobody waits for it to come true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog
import trio

from ledgerd.condition import Condition, Stage
from ledgerd.config import RELOADABLE, Config, SettingsError
from ledgerd.gateway.tls import CertificateUnusable, ServerTls
from ledgerd.logs import set_level
from ledgerd.metrics import RELOADS
from ledgerd.notify import Notifier

log = structlog.get_logger(__name__)

Reread = Callable[[], Config]
"""Reads the settings from where they came from. Raises SettingsError."""


class Reconfigurable(Protocol):
    """The gateway, as it is used here."""

    def reconfigure(self, config: Config) -> None:
        """Go by these settings from now on."""


class Reloader:
    """Takes over changed settings when it is asked to. ``config`` is what is in force."""

    def __init__(self, config: Config, reread: Reread, condition: Condition) -> None:
        self.config = config
        self._condition = condition
        self._reread = reread
        self._requested = trio.Event()

    def request(self) -> None:
        """Reload soon. Several requests that come before it begins are one."""
        self._requested.set()

    async def run(self, gateway: Reconfigurable, tls: ServerTls | None, notifier: Notifier) -> None:
        """Reload whenever that was requested, also before this began."""
        while True:
            await self._requested.wait()
            self._requested = trio.Event()
            await notifier.reloading()
            try:
                config = await trio.to_thread.run_sync(self._read, tls)
            except (SettingsError, CertificateUnusable) as error:
                self._refuse(error.problems if isinstance(error, SettingsError) else [str(error)])
            else:
                self._apply(config, gateway)
            if self._condition.stage is Stage.SERVING:
                await notifier.ready(self._condition.line())

    def _read(self, tls: ServerTls | None) -> Config:
        """The settings, and the certificate last: once it is exchanged nothing may fail."""
        config = self._reread()
        if tls is not None:
            tls.reload()
        return config

    def _refuse(self, problems: Sequence[str]) -> None:
        self._condition.trouble = f"settings not reloaded: {'; '.join(problems)}"
        RELOADS.labels("refused").inc()
        log.error("reload_refused", problems=list(problems))

    def _apply(self, wanted: Config, gateway: Reconfigurable) -> None:
        self._condition.trouble = ""
        different = [name for name in Config.__struct_fields__ if getattr(wanted, name) != getattr(self.config, name)]
        changed = [name for name in different if name in RELOADABLE]
        self.config = msgspec.structs.replace(self.config, **{name: getattr(wanted, name) for name in changed})
        gateway.reconfigure(self.config)
        if "log_level" in changed:
            set_level(self.config.log_level)
        RELOADS.labels("applied").inc()
        log.info("reloaded", changed=changed)
        restart = [name for name in different if name not in RELOADABLE]
        if restart:
            log.warning("restart_needed", settings=restart)
