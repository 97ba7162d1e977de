"""The clock of one daemon's machine, wrong by as much as one likes; needs Linux and a C compiler.

Only the clock on the wall: `clock.c` is loaded before the C library and adds an offset that can change at any instant.
Money does not go by it (the database's clock counts there); tokens, cursors, reports and logs do.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


def compile_clock(directory: Path) -> Path | None:
    """The library, made in a directory; None where it cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = directory / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
    made = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  a compiler and our own file
    return library if made.returncode == 0 else None


class Clock:
    """The clock of one daemon. ``environment`` is what its process must be started with."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "CHAOS_CLOCK_FILE": str(file)}
        self.set(0)

    def set(self, offset_s: int) -> None:
        """Let it be wrong by so many seconds from now on."""
        # In place: whoever has the file mapped sees the change.
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("@l", offset_s))
