"""What belongs to the process as a whole: how it collects garbage, how many files it may open, its terminal."""

from __future__ import annotations

import gc
import resource
import sys

import structlog

from ledgerd.config import Config

GC_THRESHOLDS = (100_000, 50, 100)
"""Sessions are many objects that live long. With Python's defaults the collector walks over all of them so often that
it takes a third of the daemon's time with a thousand connections; reference counts free nearly everything anyway."""

FILES_TO_SPARE = 100
"""Beside those of clients: the database's, the listeners', the log's."""

log = structlog.get_logger(__name__)


def prepare_process(config: Config) -> None:
    """Let it open as many files as it may, and collect garbage as suits a server."""
    gc.set_threshold(*GC_THRESHOLDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    enough = hard == resource.RLIM_INFINITY or hard >= config.connections_max + FILES_TO_SPARE
    tell = log.info if enough else log.warning
    tell("open_files", before=soft, allowed=hard, enough=enough, connections_max=config.connections_max)


class Terminal:
    """The terminal that the process was started from, if it was."""

    def __init__(self) -> None:
        self._attached = sys.stderr.isatty()

    @property
    def gone(self) -> bool:
        """Whether there was one and somebody has closed it: that sends SIGHUP as well."""
        return self._attached and not sys.stderr.isatty()
