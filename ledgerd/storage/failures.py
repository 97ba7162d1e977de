"""What an exception of the database means: one table, so that nobody guesses at a call site.

- RERUN: the transaction was rolled back for a reason that running it again will mend.
- REFUSED: the database will say the same again.
- LOST_BEFORE: the statement surely did not run.
- LOST: the connection went away; whether the statement was committed is not known. asyncpg raises errors without an
  SQLSTATE for this, also when the connection dies inside COMMIT.
"""

from __future__ import annotations

from enum import Enum, auto

import asyncpg


class Failure(Enum):
    """How to go on after an exception of the database."""

    RERUN = auto()
    REFUSED = auto()
    LOST_BEFORE = auto()
    LOST = auto()


DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""What a single connection to a database may raise; for commands that tell a person about it."""

FENCE = "LD001"
CURRENCY_SCALE = "LD002"
WALLET_UNIT = "LD003"
FIRST_CREDIT_REFUSED = "LD004"
OLD_PRIMARY = "LD005"

_RERUN_STATES = {
    "23505",  # unique_violation: another call took one of the ids, or one of the versions
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available: lock_timeout
    FENCE,
}
_LOST_BEFORE_STATES = {
    "57P03",  # cannot_connect_now: starting up or shutting down
    "53300",  # too_many_connections
    "25006",  # read_only_sql_transaction: a replica, or a primary that was demoted
    "53200",  # out_of_memory: also a full lock table
    "53100",  # disk_full
    "57014",  # query_canceled: statement_timeout rolled it back
}
_LOST_STATES = {
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
}


def classify(error: BaseException) -> Failure:
    """Sort an exception raised by asyncpg or by the socket under it."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None:
        state = error.sqlstate
        if state in _RERUN_STATES:
            return Failure.RERUN
        if state in _LOST_BEFORE_STATES:
            return Failure.LOST_BEFORE
        if state in _LOST_STATES or state.startswith("08"):
            return Failure.LOST
        return Failure.REFUSED
    if isinstance(error, asyncpg.InternalClientError | asyncpg.InterfaceError | OSError | EOFError | TimeoutError):
        # InterfaceError is also how asyncpg refuses an argument it cannot encode: then nothing was sent.
        if isinstance(error, asyncpg.exceptions.DataError | ValueError):
            return Failure.REFUSED
        return Failure.LOST
    return Failure.REFUSED
