"""How a command ends: exit codes, and the one sentence that a person reads when it failed as expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    OUTCOME_UNKNOWN = 4
    UNANSWERED = 5
    INTERRUPTED = 130


EXIT_CODES = """\
Exit codes: 0 done · 1 refused or failed · 2 wrong usage or configuration · 3 cannot connect · 4 sent, but the outcome \
is unknown: send the same transaction_id again · 5 the daemon stopped and left messages unanswered · 130 stopped by \
Ctrl-C."""


class Failed(Exception):
    """An expected failure: what went wrong and what to do, in one sentence, and the exit code it ends with."""

    def __init__(self, sentence: str, code: Exit = Exit.REFUSED) -> None:
        super().__init__(sentence)
        self.code = code


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in nested groups, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in leaves(member)]
    return [error]


@contextmanager
def failures_in_the_log() -> Iterator[None]:
    """Where a program reads the log, a failure is one of its lines: a sentence beside them would be no JSON."""
    from ledgerd import logs

    try:
        yield
    except Failed as failed:
        if not logs.for_a_machine():
            raise
        logs.log.critical("serving_failed", detail=str(failed), exit_code=int(failed.code))
        raise SystemExit(int(failed.code)) from failed


def owner_dsn(given: str | None) -> str:
    """The owner's connection string. Raises Failed if there is none."""
    if not given:
        raise Failed("whose database? Give the owner's connection in LEDGERD_OWNER_DSN or --dsn", Exit.USAGE)
    return given


@contextmanager
def database_errors() -> Iterator[None]:
    """What a connection of our own to the database may end with, said in a sentence."""
    from ledgerd.masking import error_text
    from ledgerd.storage.failures import DATABASE_ERRORS, Failure, classify
    from ledgerd.storage.migrations import MigrationMismatch

    try:
        yield
    except MigrationMismatch as error:
        raise Failed(str(error)) from error
    except DATABASE_ERRORS as error:
        told = error_text(error)
        if classify(error) is Failure.REFUSED:
            raise Failed(f"the database refuses: {told}") from error
        raise Failed(f"cannot connect to the database: {told}", Exit.CANNOT_CONNECT) from error
