"""What each exception of the database means for the call that met it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from asyncpg import exceptions

from ledgerd.storage.failures import FENCE, Failure, classify


def _with_state(state: str) -> asyncpg.PostgresError:
    error = asyncpg.PostgresError("said by the server")
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (exceptions.UniqueViolationError("x"), Failure.RERUN),
        (exceptions.SerializationError("x"), Failure.RERUN),
        (exceptions.DeadlockDetectedError("x"), Failure.RERUN),
        (exceptions.LockNotAvailableError("x"), Failure.RERUN),
        (_with_state(FENCE), Failure.RERUN),
        (exceptions.CannotConnectNowError("x"), Failure.LOST_BEFORE),
        (exceptions.TooManyConnectionsError("x"), Failure.LOST_BEFORE),
        (exceptions.ReadOnlySQLTransactionError("x"), Failure.LOST_BEFORE),
        (exceptions.OutOfMemoryError("x"), Failure.LOST_BEFORE),
        (exceptions.DiskFullError("x"), Failure.LOST_BEFORE),
        (exceptions.QueryCanceledError("x"), Failure.LOST_BEFORE),
        (exceptions.AdminShutdownError("x"), Failure.LOST),
        (exceptions.CrashShutdownError("x"), Failure.LOST),
        (exceptions.IdleInTransactionSessionTimeoutError("x"), Failure.LOST),
        (exceptions.ConnectionDoesNotExistError("x"), Failure.LOST),
        (exceptions.ConnectionFailureError("x"), Failure.LOST),
        (_with_state("57P05"), Failure.LOST),
        (_with_state("08P01"), Failure.LOST),
        (exceptions.InterfaceError("connection is closed"), Failure.LOST),
        (exceptions.InternalClientError("x"), Failure.LOST),
        (ConnectionResetError("x"), Failure.LOST),
        (BrokenPipeError("x"), Failure.LOST),
        (asyncio.IncompleteReadError(b"", 1), Failure.LOST),
        (TimeoutError("x"), Failure.LOST),
        (exceptions.CheckViolationError("x"), Failure.REFUSED),
        (exceptions.NotNullViolationError("x"), Failure.REFUSED),
        (exceptions.ForeignKeyViolationError("x"), Failure.REFUSED),
        (exceptions.InsufficientPrivilegeError("x"), Failure.REFUSED),
        (exceptions.UndefinedFunctionError("x"), Failure.REFUSED),
        (exceptions.RaiseError("x"), Failure.REFUSED),
        (exceptions.DataError("invalid input for query argument $1"), Failure.REFUSED),
        (exceptions.ClientConfigurationError("x"), Failure.REFUSED),
        (_with_state("LD002"), Failure.REFUSED),
        (KeyError("a bug"), Failure.REFUSED),
    ],
    ids=lambda value: (
        getattr(value, "sqlstate", None) or (type(value).__name__ if isinstance(value, Exception) else "")
    ),
)
def test_classify(error: BaseException, failure: Failure) -> None:
    assert classify(error) is failure
