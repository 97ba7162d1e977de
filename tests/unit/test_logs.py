"""Log lines: the form that suits the reader, no floods, nothing secret and nobody's data for anybody."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec
import pytest
import structlog

from ledgerd import logs, masking
from ledgerd.log_rate import LogRate
from ledgerd.masking import error_text, traceback_text
from ledgerd_protocol.errors import ErrorCode, LedgerError

SECRET = "lgd_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_abcde"
CANARY = "canary-of-somebody"


@pytest.fixture
def configured() -> Iterator[Any]:
    """Configures logging as often as it is called, to a stream that it gives; all is as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("ledgerd")
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook

    def configure(level: str = "info", form: logs.Form = "auto") -> io.StringIO:
        stream = io.StringIO()
        logs.configure(level, stream, form)
        return stream

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)
    sys.excepthook = hook
    structlog.reset_defaults()


@pytest.fixture
def stream(configured: Any) -> io.StringIO:
    return configured()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def say(**members: Any) -> None:
    structlog.get_logger("ledgerd.somewhere").info("said", **members)


# -- form --------------------------------------------------------------------------------------------------------------


def test_a_line_is_one_json_object_with_what_was_said(stream):
    structlog.get_logger("ledgerd.somewhere").info("opened", account_id=7)
    (line,) = lines(stream)
    assert (line["event"], line["account_id"], line["level"]) == ("opened", 7, "info")
    assert str(line["timestamp"]).endswith("Z")


def test_levels_below_the_chosen_one_are_silent_and_libraries_speak_from_warnings_up(stream):
    structlog.get_logger("ledgerd.somewhere").debug("quiet")
    logging.getLogger("trio-websocket").info("sending %s", SECRET)
    logging.getLogger("hypercorn.error").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]
    assert not logs.debugging()


def test_the_level_may_change_while_the_daemon_runs(stream):
    logs.set_level("debug")
    structlog.get_logger("ledgerd.somewhere").debug("heard")
    assert [line["event"] for line in lines(stream)] == ["heard"]
    assert logs.debugging()


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_for_the_journal_every_line_begins_with_its_priority(configured, level, priority):
    stream = configured("debug", "journal")
    getattr(structlog.get_logger("ledgerd.somewhere"), level)("said", detail="two\nlines")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(f"<{priority}>{{")
    assert msgspec.json.decode(line[3:])["detail"] == "two\nlines"


def test_a_traceback_is_one_line_for_the_journal(configured):
    stream = configured("info", "journal")
    try:
        [].pop()
    except IndexError:
        structlog.get_logger("ledgerd.somewhere").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "in test_a_traceback" in msgspec.json.decode(line[3:])["exception"]


def test_the_journal_is_known_by_its_stream_and_not_by_the_variable_alone():
    with tempfile.TemporaryFile("w") as ours, tempfile.TemporaryFile("w") as other:
        where = os.fstat(ours.fileno())
        environ = {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"}
        assert logs.form_of(ours, environ) == "journal"
        assert logs.form_of(other, environ) == "json"
        assert logs.form_of(ours, {}) == "json"


def test_a_person_at_a_terminal_is_told_in_a_persons_form():
    master, slave = os.openpty()
    try:
        with open(slave, "w", closefd=False) as terminal:
            assert logs.form_of(terminal, {}) == "console"
            where = os.fstat(slave)
            assert logs.form_of(terminal, {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"}) == "journal"
    finally:
        os.close(master)
        os.close(slave)


def test_the_form_for_persons_shows_event_and_members_without_json(configured):
    stream = configured("info", "console")
    say(account_id=7)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "said" in plain
    assert "account_id=7" in plain
    assert not plain.startswith("{")


# -- floods ------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_one_event_so_many_lines_are_written_per_window_and_the_rest_is_counted():
    clock = Clock()
    rate = LogRate(lines_max=3, window_s=10, clock=clock)
    assert [rate.admit("refused") for _ in range(5)] == [True, True, True, False, False]
    assert rate.admit("another")
    clock.now = 9.9
    assert rate.over() == []
    clock.now = 10
    assert rate.over() == [("refused", 2)]
    assert rate.over() == []
    assert rate.admit("refused")


def test_a_flood_ends_in_one_line_that_counts_it(configured):
    stream = configured()
    clock = Clock()
    door = logging.getLogger().handlers[0]
    door._rate = LogRate(lines_max=3, window_s=10, clock=clock)
    for _ in range(50):
        say()
    assert len(lines(stream)) == 3
    clock.now = 11
    structlog.get_logger("ledgerd.somewhere").info("later")
    *_, told, later = lines(stream)
    assert (told["event"], told["level"], told["what"], told["lines"]) == (
        "log_lines_suppressed",
        "warning",
        "said",
        47,
    )
    assert later["event"] == "later"


def test_a_flood_that_is_followed_by_nothing_is_told_when_the_log_is_closed(configured):
    stream = configured()
    door = logging.getLogger().handlers[0]
    door._rate = LogRate(lines_max=1)
    say()
    say()
    door.close()
    assert [line["event"] for line in lines(stream)] == ["said", "log_lines_suppressed"]


def test_who_asks_for_debug_lines_gets_all_of_them(configured):
    stream = configured("debug")
    logging.getLogger().handlers[0]._rate = LogRate(lines_max=1)
    for _ in range(5):
        structlog.get_logger("ledgerd.somewhere").debug("said")
    assert len(lines(stream)) == 5


def test_nothing_is_endless(stream):
    say(detail="x" * 100_000, listed=list(range(100_000)))
    (line,) = stream.getvalue().splitlines()
    assert len(line) < 40_000


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", sorted(masking.SECRET_MEMBERS))
def test_a_member_with_a_telling_name_is_masked_however_deep(stream, member):
    say(**{member: "hunter2"}, inner={member: "hunter2"}, listed=[{member: "hunter2"}])
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][member] == "***"


def test_tokens_and_passwords_are_masked_wherever_they_stand(stream):
    log = structlog.get_logger("ledgerd.somewhere")
    log.info(f"event with {SECRET}", detail=f"text {SECRET}", listed=[SECRET], url="postgresql://me:hunter2@db/bank")
    log.info("said", header=f"Authorization: Bearer {CANARY}", options="host=db password='hunter2 3' user=me")
    try:
        int(f"cannot connect to postgresql://me:hunter2@db/bank as {SECRET}")
    except ValueError:
        log.exception("failed")
    logging.getLogger("somebody.else").error("password=hunter2 %s", SECRET)
    assert len(lines(stream)) == 4
    for secret in ("hunter2", "AbCdEfGh", CANARY):
        assert secret not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def postgres_error(kind: type[asyncpg.PostgresError], message: str) -> asyncpg.PostgresError:
    fields = {"C": kind.sqlstate, "M": message, "D": f"Key (email)=({CANARY}) already exists.", "n": "users_email"}
    error = asyncpg.PostgresError.new(fields)
    assert type(error) is kind
    assert CANARY in str(error)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(CANARY), "ValueError"),
        (KeyError(CANARY), "KeyError"),
        (UnicodeDecodeError("ascii", f"Bearer {CANARY}".encode(), 0, 1, "no"), "UnicodeDecodeError"),
        (LedgerError(ErrorCode.INVALID_PARAMS, f"no {CANARY}"), "LedgerError"),
        (asyncpg.DataError(f"invalid input for query argument $1: {CANARY!r}"), "DataError: SQLSTATE 22000"),
        (asyncpg.InterfaceError(CANARY), "InterfaceError"),
        (
            postgres_error(asyncpg.UniqueViolationError, "duplicate key"),
            "UniqueViolationError: SQLSTATE 23505, constraint users_email",
        ),
        (
            postgres_error(asyncpg.InvalidTextRepresentationError, f"invalid input: {CANARY}"),
            "InvalidTextRepresentationError: SQLSTATE 22P02, constraint users_email",
        ),
        (
            postgres_error(asyncpg.InsufficientPrivilegeError, "permission denied for table users"),
            "InsufficientPrivilegeError: permission denied for table users, SQLSTATE 42501, constraint users_email",
        ),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
        (TypeError("unsupported operand"), "TypeError: unsupported operand"),
    ],
)
def test_an_error_is_told_by_its_kind_and_by_words_that_are_nobodys_data(error, said):
    assert error_text(error) == said


def test_a_traceback_shows_where_and_never_a_value(stream):
    password = CANARY  # a local variable

    def inner() -> None:
        try:
            raise postgres_error(asyncpg.UniqueViolationError, "duplicate key")
        except asyncpg.PostgresError as error:
            raise ValueError(password) from error

    try:
        try:
            inner()
        except ValueError as error:
            raise ExceptionGroup("of a nursery", [error, KeyError(password)]) from None
    except ExceptionGroup:
        structlog.get_logger("ledgerd.somewhere").exception("failed")
    (line,) = lines(stream)
    told = line["exception"]
    assert CANARY not in stream.getvalue()
    for part in ("of a nursery", "in inner", "UniqueViolationError: SQLSTATE 23505", "-- which led to:", "KeyError"):
        assert part in told


def test_errors_that_are_each_others_cause_are_told_once():
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert traceback_text(first).count("KeyError") == 1


def test_of_what_a_library_says_the_sentence_is_kept_and_the_values_are_not(stream):
    library = logging.getLogger("somebody.else")
    library.warning("%d of %s failed after %.1f s", 3, CANARY, 0.5)
    library.error(f"Task exception was never retrieved\nfuture: <Task exception={CANARY!r}>")
    try:
        int(CANARY)
    except ValueError:
        library.exception("it broke")
    assert CANARY not in stream.getvalue()
    said = [line["event"] for line in lines(stream)]
    assert said == ["3 of *** failed after 0.5 s", "Task exception was never retrieved", "it broke"]
    assert "ValueError" in lines(stream)[2]["exception"]


def test_a_line_that_cannot_be_written_is_not_printed_by_python_with_its_values(configured, capsys):
    configured()
    logging.getLogger().handlers[0].stream = open(os.devnull)  # noqa: PTH123, SIM115 - cannot be written to
    say(detail=CANARY)
    logging.getLogger().handlers[0].stream.close()
    assert capsys.readouterr().err == ""


def test_what_nobody_caught_goes_through_the_same_door_and_ends_with_code_1():
    # The value comes from outside: from Python 3.13 on a traceback shows the lines of such a program.
    program = """
import sys
from ledgerd import logs
logs.configure("info", form="journal")
raise ValueError(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", program, CANARY], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert CANARY not in line
    assert line.startswith("<2>")
    assert msgspec.json.decode(line[3:])["event"] == "crashed"
