"""Decisions made of bytes, so that whoever mutates the bytes mutates the story that is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")


class Source:
    """Bytes that are used up from the front. When they are, every decision is the first of its options."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def exhausted(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def below(self, end: int) -> int:
        """A number from 0 up to ``end``, not included; ``end`` is at most 65,536."""
        return int.from_bytes(self.take(1 if end <= 256 else 2), "big") % end

    def one_in(self, number: int) -> bool:
        """True once in so many times; False when all bytes are used up."""
        return self.below(number) == number - 1

    def pick(self, options: Sequence[Option]) -> Option:
        """One of the options."""
        return options[self.below(len(options))]

    def mostly(self, options: Sequence[Option]) -> Option:
        """The first of the options more often than not, else any."""
        return options[0] if self.below(5) < 3 else self.pick(options)

    def take(self, size: int) -> bytes:
        """The next bytes, so many or what is left."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def pieces(self, data: bytes) -> list[bytes]:
        """The data, cut into pieces of which the sizes repeat themselves."""
        sizes = [1 + self.below(64) for _ in range(1 + self.below(4))]
        pieces, at = [], 0
        while at < len(data):
            size = sizes[len(pieces) % len(sizes)]
            pieces.append(data[at : at + size])
            at += size
        return pieces
