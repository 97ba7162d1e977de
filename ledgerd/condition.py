"""How the daemon is: in a word for load balancers, in a line for operators."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Stage(Enum):
    """Of the daemon's life."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


class Database(Protocol):
    """Whether there is one."""

    @property
    def connected(self) -> bool:
        """Whether it can be reached at the moment."""


class Sessions(Protocol):
    """The gateway, as it is counted here."""

    @property
    def connections(self) -> int:
        """Sessions that are open."""

    @property
    def unanswered(self) -> int:
        """Messages that execute or wait."""


class Condition:
    """The stage, and what can be said about it. ``trouble`` is what an operator should look after, or nothing."""

    def __init__(self, database: Database) -> None:
        self.stage = Stage.STARTING
        self.sessions: Sessions | None = None
        self.trouble = ""
        self._database = database

    def ready(self) -> tuple[bool, str]:
        """Whether clients should come here, and if not, why."""
        if self.stage is not Stage.SERVING:
            return False, self.stage.value
        return (True, "ready") if self._database.connected else (False, "the database is not reachable")

    def line(self) -> str:
        """One line."""
        if self.stage is Stage.STARTING or self.sessions is None:
            return "starting" if self._database.connected else "starting: waiting for the database"
        if self.stage is Stage.STOPPING:
            return f"draining: {self.sessions.unanswered} messages in flight, {self.sessions.connections} sessions open"
        database = "database up" if self._database.connected else "database not reachable"
        trouble = f"; {self.trouble}" if self.trouble else ""
        return f"serving {self.sessions.connections} sessions, {database}{trouble}"
