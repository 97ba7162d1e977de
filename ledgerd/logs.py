"""Where log lines go and how they look: colours for a person at a terminal, one JSON object per line for a machine.

Rules of this file:

- Lines go to standard error; standard output belongs to the commands' answers.
- No line carries a secret. Members with telling names are masked, and whatever looks like a token or like a URL with a
  password is masked wherever it stands, tracebacks included: the last look is here, not in the care of every caller.
- The libraries' own loggers speak through the same door, from warnings up: below that they log what they transport.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

SECRET_MEMBERS = frozenset(
    {"authorization", "body", "dsn", "email", "metadata", "params", "password", "password_hash", "secret", "token"}
)
_MASK = "***"
_TOKEN = re.compile(r"lgd_[A-Za-z0-9_-]{8,}")
_URL_PASSWORD = re.compile(r"(?<=://)([^\s:@/?#]*):[^\s@/]*@")
_PASSWORD = re.compile(r"(?i)\b((?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'|[^\s&]+)")


def without_secrets(text: str) -> str:
    """The text with tokens and passwords of connection strings masked."""
    text = _TOKEN.sub(f"lgd_{_MASK}", text)
    text = _URL_PASSWORD.sub(rf"\1:{_MASK}@", text)
    return _PASSWORD.sub(rf"\1{_MASK}", text)


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no secret passes."""
    for name, value in event.items():
        if name in SECRET_MEMBERS:
            event[name] = _MASK
        elif isinstance(value, str):
            event[name] = without_secrets(value)
        elif not isinstance(value, int | float | bool | None):
            event[name] = without_secrets(str(value))
    return event


def configure(level: str, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging; ``level`` is debug, info, warning or error."""
    stream = stream or sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
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
        if stream.isatty()
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ledgerd").setLevel(level.upper())
