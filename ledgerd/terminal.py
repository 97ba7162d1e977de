"""Answers go to standard output: for a person in colour, for a program as lines it can read."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich.console import Console


def stdout() -> Console:
    """A console that decorates nothing by guessing."""
    return Console(highlight=False)


def write(line: str) -> None:
    """One line, at once: whoever reads a pipe should not wait for a buffer."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """A value as JSON: indented in colour for a terminal, on one line for a pipe."""
    data = msgspec.json.encode(value)
    console = stdout()
    if console.is_terminal:
        console.print_json(msgspec.json.format(data, indent=2).decode())
    else:
        write(data.decode())
