"""Exact money: decimal text on the wire, integer minor units inside, nothing in between.

Rules of this file:

- An amount is judged as the raw text of its JSON string or number. It never passes through a float or a Decimal
  parser: both accept spellings (``NaN``, ``1e2``, ``1_000``, other scripts' digits) that are not amounts here.
- Nothing is ever rounded. More decimals than the currency has, trailing zeros included, is an error.
- A currency's scale (its number of decimals) comes from ISO 4217 or from configuration.
"""

from __future__ import annotations

import re

import msgspec
from iso4217 import Currency

MINOR_MAX = 10**18 - 1
"""The largest amount and the largest balance, in minor units. Fits a signed 64-bit integer with room to add two."""

SCALE_MAX = 8

_ZEROS = ("0", *("0." + "0" * scale for scale in range(1, SCALE_MAX + 1)))
"""Most of what is held, and of what changed of it, is nothing."""

_AMOUNT = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,8})?", re.ASCII)
_PLAIN_STRING = re.compile(rb'"((?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,8})?)"')


class AmountSyntax(ValueError):
    """The text is not an amount: digits without leading zeros, optionally a point and 1 to 8 decimals."""


class AmountPrecision(ValueError):
    """The amount has more decimals than its currency."""


class AmountOutOfRange(ValueError):
    """The amount is negative, zero, or above ``MINOR_MAX`` minor units."""


def amount_text(raw: msgspec.Raw | bytes) -> str:
    """The text of an amount given as a raw JSON string or number.

    A leading minus passes here, because a negative amount is out of range rather than malformed.
    Raises AmountSyntax.
    """
    data = bytes(raw)
    if plain := _PLAIN_STRING.fullmatch(data):  # nearly every amount, without the detour over escapes
        return plain[1].decode("ascii")
    try:
        text = msgspec.json.decode(data, type=str) if data[:1] == b'"' else data.decode("ascii")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AmountSyntax from error
    if _AMOUNT.fullmatch(text) is None:
        raise AmountSyntax
    return text


def to_minor(text: str, scale: int, *, zero_allowed: bool = False) -> int:
    """Minor units of an amount that `amount_text` accepted, in a currency of ``scale`` decimals.

    Raises AmountPrecision before AmountOutOfRange, so that one text has one answer.
    """
    whole, _, decimals = text.partition(".")
    if len(decimals) > scale:
        raise AmountPrecision
    minor = int(whole + decimals.ljust(scale, "0"))
    if text[0] == "-" or minor > MINOR_MAX or (minor == 0 and not zero_allowed):
        raise AmountOutOfRange
    return minor


def to_text(minor: int, scale: int) -> str:
    """Decimal text with exactly ``scale`` decimals."""
    if minor == 0:
        return _ZEROS[scale]
    if scale == 0:
        return str(minor)
    if minor < 0:
        return "-" + to_text(-minor, scale)
    digits = str(minor)
    if len(digits) <= scale:
        digits = digits.zfill(scale + 1)
    return f"{digits[:-scale]}.{digits[-scale:]}"


def iso_scale(code: str) -> int | None:
    """Decimals of an ISO 4217 currency, or None if the code is not one or has no minor unit (gold, test codes)."""
    try:
        exponent = Currency(code).exponent
    except ValueError:
        return None
    return exponent if exponent is None else int(exponent)
