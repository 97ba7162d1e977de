"""Canonical text of a command's metadata, so that the same metadata spelled differently is the same command.

The canonical text has no white space, keys in code point order at every depth, strings in their shortest escaping, and
numbers exactly as the client spelled them: ``1.0`` and ``1`` differ, and nothing is lost to a float.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

METADATA_BYTES_MAX = 4096
"""Of the canonical text, in UTF-8."""

METADATA_DEPTH_MAX = 4
"""Objects and arrays within one another, the metadata itself being the first."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ARRAY = msgspec.json.Decoder(list[Raw])
_ANY = msgspec.json.Decoder(Raw)
_TEXT = msgspec.json.Decoder(str)
_WHITE_SPACE = b" \t\n\r"
_ENCODER = msgspec.json.Encoder()


def canonical_metadata(raw: Raw | bytes) -> str:
    """The canonical text of a raw JSON object.

    Raises ValueError, with a sentence for the caller, unless it is an object of at most ``METADATA_BYTES_MAX`` bytes
    and ``METADATA_DEPTH_MAX`` levels. Keys that occur twice are refused where the whole message is read.
    """
    data = bytes(raw).strip(_WHITE_SPACE)
    if data[:1] != b"{":
        raise ValueError("The metadata must be an object.")
    try:
        text = _canonical(data, METADATA_DEPTH_MAX)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("The metadata must be valid JSON.") from error
    if len(text) > METADATA_BYTES_MAX:
        raise ValueError(f"The metadata must have at most {METADATA_BYTES_MAX} bytes.")
    return text.decode()


def _canonical(data: bytes, levels_left: int) -> bytes:
    """The canonical bytes of one JSON value without white space around it."""
    first = data[:1]
    if first in (b"{", b"["):
        if levels_left == 0:
            raise ValueError(f"The metadata must not nest deeper than {METADATA_DEPTH_MAX} levels.")
        if first == b"[":
            return b"[" + b",".join(_canonical(bytes(item), levels_left - 1) for item in _ARRAY.decode(data)) + b"]"
        members = sorted(_OBJECT.decode(data).items())
        return (
            b"{"
            + b",".join(
                _ENCODER.encode(key) + b":" + _canonical(bytes(value), levels_left - 1) for key, value in members
            )
            + b"}"
        )
    if first == b'"':
        return _ENCODER.encode(_TEXT.decode(data))
    return bytes(_ANY.decode(data))
