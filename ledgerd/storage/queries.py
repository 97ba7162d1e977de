"""The named queries of the files in sql/, each read once."""

from __future__ import annotations

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n-- (.+)$", re.MULTILINE)


def load(file: str) -> dict[str, str]:
    """The queries of a file in sql/, by name."""
    text = (files("ledgerd.storage") / "sql" / file).read_text("utf-8")
    pieces = _NAME.split(text)
    return {name: sql.strip().rstrip(";") for name, sql in zip(pieces[1::3], pieces[3::3], strict=True)}


QUERIES = load("queries.sql")
AUDIT = load("verify.sql")
CHECKS = load("checks.sql")
