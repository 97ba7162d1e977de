"""The named queries of sql/queries.sql, read once."""

from __future__ import annotations

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n-- (.+)$", re.MULTILINE)


def _load() -> dict[str, str]:
    text = (files("ledgerd.storage") / "sql" / "queries.sql").read_text("utf-8")
    pieces = _NAME.split(text)
    return {name: sql.strip().rstrip(";") for name, sql in zip(pieces[1::3], pieces[3::3], strict=True)}


QUERIES = _load()
