"""Where log lines go and how they look: colours for a person at a terminal, one JSON object per line for a machine.

Rules of this file:

- Lines go to standard error; standard output belongs to the commands' answers.
- No line carries a secret or anybody's data: see `ledgerd.masking`. That holds for exceptions that nobody caught too,
  which Python would print with all their words.
- The libraries' own loggers speak through the same door, from warnings up: below that they log what they transport. Of
  what they say the sentence is kept and the values are not.
- No event floods the log: see `ledgerd.log_rate`.

Under systemd standard error is a stream to journald, which JOURNAL_STREAM names. There each line begins with its
priority as ``<6>``, as sd-daemon(3) describes it. journald takes that off and keeps it as the message's level, so that
``journalctl -p warning`` works, and ``journalctl -o cat`` shows the JSON alone. The native protocol would say no more:
its fields would be the same members, in a second form that nobody who reads files could use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog
import trio

from ledgerd.log_rate import WINDOW_S, LogRate
from ledgerd.masking import mask_secrets, traceback_text
from ledgerd.metrics import LOG_LINES, LOG_LINES_SUPPRESSED

Form = Literal["auto", "json", "journal", "console"]

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""Levels as syslog counts them."""

log = structlog.get_logger(__name__)

_OURS = logging.getLogger("ledgerd")


def configure(level: str, stream: TextIO | None = None, form: Form = "auto") -> None:
    """Set up structlog and the standard library's logging; ``level`` is debug, info, warning or error."""
    stream = stream or sys.stderr
    if form == "auto":
        form = form_of(stream, os.environ)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tell_exception,
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
        if form == "console"
        else structlog.processors.JSONRenderer()
    )
    door = Door(stream, form)
    door.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_tell_without_values, *shared],
            use_get_message=False,
            pass_foreign_args=True,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _in_order, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [door]
    root.setLevel(logging.WARNING)
    set_level(level)
    sys.excepthook = _tell_crash


def set_level(level: str) -> None:
    """From which level on our own lines are written; may be called at any time."""
    _OURS.setLevel(level.upper())


def for_a_machine() -> bool:
    """Whether lines are JSON: what is said beside them would be no object."""
    doors = [handler for handler in logging.getLogger().handlers if isinstance(handler, Door)]
    return any(door.form != "console" for door in doors)


def debugging() -> bool:
    """Whether lines of level debug are written: for those that cost something to put together."""
    return _OURS.isEnabledFor(logging.DEBUG)


def form_of(stream: TextIO, environ: Mapping[str, str]) -> Form:
    """The form that suits whoever reads the stream: journald, a person, or a program."""
    try:
        where = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return "json"
    # A service that sends its standard error elsewhere inherits the variable all the same.
    if environ.get("JOURNAL_STREAM") == f"{where.st_dev}:{where.st_ino}":
        return "journal"
    return "console" if stream.isatty() else "json"


async def tell_suppressed() -> None:
    """Say what was left out soon after it was, even if nothing else is said. Runs until cancelled."""
    while True:
        await trio.sleep(WINDOW_S)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, Door):
                handler.tell()


class Door(logging.StreamHandler[TextIO]):
    """Writes lines, counts them, and leaves out what would be a flood."""

    def __init__(self, stream: TextIO, form: Form = "json") -> None:
        super().__init__(stream)
        self.form = form
        self._rate = LogRate()

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record)
        return f"<{_PRIORITIES.get(record.levelno, 5)}>{line}" if self.form == "journal" else line

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, unless there were too many like it. Whoever asks for debug lines gets all of them."""
        LOG_LINES.labels(record.levelname.lower()).inc()
        if record.levelno > logging.DEBUG:
            self.tell()
            if not self._rate.admit(_event_of(record)):
                LOG_LINES_SUPPRESSED.inc()
                return
        super().emit(record)

    def tell(self, *, everything: bool = False) -> None:
        """Say what was left out in windows that have ended, or in all."""
        self.acquire()
        try:
            over = self._rate.over(everything=everything)
        finally:
            self.release()
        for event, lines in over:
            log.warning("log_lines_suppressed", what=event, lines=lines, window_s=WINDOW_S)

    def close(self) -> None:
        """Say what was left out; the process ends."""
        self.tell(everything=True)
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the library's name
        """A line that cannot be written is counted and forgotten: Python would print it with all its values."""
        LOG_LINES_SUPPRESSED.inc()


def _event_of(record: logging.LogRecord) -> str:
    """The event of one of our lines; of a library's, its logger's name."""
    return str(record.msg.get("event")) if isinstance(record.msg, dict) else record.name


# -- processors --------------------------------------------------------------------------------------------------------


def _tell_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put ``exception`` in the place of ``exc_info``."""
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event["exception"] = traceback_text(error)
    return event


def _tell_without_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Of a library's line the first sentence, with its numbers. What else was put into it may be anything."""
    sentence = str(event["event"]).partition("\n")[0]
    values = event.pop("positional_args", None)
    if isinstance(values, tuple) and values:
        with contextlib.suppress(TypeError, ValueError):  # a sentence with other ideas stays as it is written
            sentence %= tuple(value if isinstance(value, int | float) else "***" for value in values)
    return {**event, "event": sentence}


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What one looks for first comes first."""
    return {**{name: event[name] for name in ("timestamp", "level", "event") if name in event}, **event}


def _tell_crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What nobody caught, through the same door."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("crashed", exc_info=error)
