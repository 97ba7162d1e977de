"""What happened, in order: one line per event, of which a digest is kept, and the lines themselves when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import trio


class Trace:
    """The digest of a run. Two runs of one seed have the same one, or the simulation itself is broken."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._show = show
        self.events = 0
        self.failures: list[str] = []

    def note(self, who: str, what: str, *details: object) -> None:
        """Something happened."""
        self.events += 1
        line = f"{trio.current_time():10.6f} {who:<10} {what} {' '.join(map(str, details))}"
        self._digest.update(line.encode())
        if self._show is not None:
            self._show(line)

    def fail(self, sentence: str) -> None:
        """An invariant does not hold. The run goes on: what follows from it may say more."""
        self.note("CHECKER", "FAILED", sentence)
        self.failures.append(f"{trio.current_time():.3f} s: {sentence}")

    @property
    def digest(self) -> str:
        """Of everything so far."""
        return self._digest.hexdigest()
