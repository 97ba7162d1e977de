"""What may be said of anything: secrets and people's data are kept out of every text that leaves for a log.

Rules of this file:

- Members with telling names are masked, and whatever looks like a token or like a connection string with a password is
  masked wherever it stands: the last look is here, not in the care of every caller.
- The words of an exception are somebody's data until the opposite is known. Postgres quotes rows (``Key (email)=(...)
  already exists``), asyncpg quotes arguments, Python's own errors quote the value that they did not like. Said are the
  words of our own errors, of the system's and of those that only speak of types and names; of all others the kind.
  Where it happened, which is what helps, is in the traceback anyway; it shows source lines and never a value.
- Everything is bounded: journald cuts lines at 48 KiB, and half a JSON object is none.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any

SECRET_MEMBERS = frozenset(
    {"authorization", "body", "dsn", "email", "metadata", "params", "password", "password_hash", "secret", "token"}
)
TEXT_MAX = 2_000
TRACEBACK_MAX = 16_000
FRAMES_MAX = 30
"""Of one exception: the innermost ones."""

GROUP_MAX = 5
"""Members of an exception group that are told."""

LIST_MAX = 50

_MASK = "***"
_TOKEN = re.compile(r"lgd_[A-Za-z0-9_-]{8,}")
_URL_PASSWORD = re.compile(r"(?<=://)([^\s:@/?#]*):[^\s@/]*@")
_PASSWORD = re.compile(r"(?i)\b((?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'|[^\s&]+)")
_BEARER = re.compile(r"(?i)\b(bearer[\s.]+)[A-Za-z0-9._~+/=-]{8,}")

_PLAIN = (OSError, EOFError, TypeError, AttributeError, NameError, NotImplementedError, RecursionError, MemoryError)
"""Errors of Python whose words name types, attributes and files."""

_PLAIN_MODULES = ("ledgerd", "trio")

_QUOTES_VALUES = ("LedgerError",)
"""Of ours, those that may quote what a client sent."""

_PLAIN_STATES = frozenset({"08", "25", "28", "3D", "40", "42", "53", "55", "57", "58"})
"""Classes of SQLSTATE whose messages name roles, databases, objects and limits, and never a row's values."""

_NAMED_BY_POSTGRES = ("table_name", "column_name", "constraint_name")


def without_secrets(text: str) -> str:
    """The text with tokens and passwords of connection strings masked."""
    text = _TOKEN.sub(f"lgd_{_MASK}", text)
    text = _URL_PASSWORD.sub(rf"\1:{_MASK}@", text)
    text = _BEARER.sub(rf"\1{_MASK}", text)
    return _PASSWORD.sub(rf"\1{_MASK}", text)


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no secret passes, and nothing endless."""
    for name, value in event.items():
        if not name.startswith("_"):
            event[name] = _MASK if name in SECRET_MEMBERS else _sayable(value, TRACEBACK_MAX)
    return event


def _sayable(value: Any, most: int = TEXT_MAX) -> Any:
    """The value as JSON can say it, without secrets and bounded."""
    if isinstance(value, int | float | bool | None):
        return value
    if isinstance(value, BaseException):
        return error_text(value)
    if isinstance(value, Mapping):
        members = list(value.items())[:LIST_MAX]
        return {str(name): _MASK if name in SECRET_MEMBERS else _sayable(member) for name, member in members}
    if isinstance(value, list | tuple | set | frozenset):
        return [_sayable(member) for member in list(value)[:LIST_MAX]]
    # Not the first and the last half: a secret that is cut in two would not look like one.
    text = without_secrets(str(value))
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


# -- exceptions --------------------------------------------------------------------------------------------------------


def error_text(error: BaseException) -> str:
    """The kind of an error and, where they cannot be somebody's data, its words."""
    kind = type(error).__name__
    words = " ".join(_words(error).split())
    return f"{kind}: {without_secrets(words)[:TEXT_MAX]}" if words else kind


def _words(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return _words_of_postgres(error, state)
    if isinstance(error, UnicodeError) or type(error).__name__ in _QUOTES_VALUES:
        return ""
    if isinstance(error, OSError):
        # asyncpg and Trio put addresses there; a file's name is a file's name.
        return str(error)
    package = type(error).__module__.partition(".")[0]
    ours = package in _PLAIN_MODULES or package.startswith("ledgerd_")
    if ours or isinstance(error, (*_PLAIN, BaseExceptionGroup)):
        return str(error)
    return ""


def _words_of_postgres(error: BaseException, state: str) -> str:
    """SQLSTATE, the message where its class allows, and the names of what it is about. DETAIL and HINT never."""
    message = str(error.args[0]) if error.args and state[:2] in _PLAIN_STATES else ""
    values = {name.removesuffix("_name"): getattr(error, name, None) for name in _NAMED_BY_POSTGRES}
    named = [f"{name} {value}" for name, value in values.items() if value]
    return ", ".join([part for part in (message, f"SQLSTATE {state}", *named) if part])


def traceback_text(error: BaseException) -> str:
    """Where it happened, causes first, in the usual form; what was said only as far as `error_text` says it."""
    text = "\n".join(_told(error, set()))
    return text if len(text) <= TRACEBACK_MAX else f"...\n{text[-TRACEBACK_MAX:]}"


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "-- which led to:"
    yield from _frames(error.__traceback__)
    yield error_text(error)
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions[:GROUP_MAX], start=1):
            yield f"-- {number} of {len(error.exceptions)}:"
            for line in _told(member, seen):
                yield f"    {line}"


def _frames(trace: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(trace)[-FRAMES_MAX:]:
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        if frame.line:
            yield f"    {frame.line}"
