"""The table of all metrics in ``systemd/monitoring/README.md``, from `ledgerd.metrics`. Writes it: ``python -m
ledgerd.metrics_table``; a test fails while the two differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from prometheus_client import Counter, Gauge, Histogram, Info

from ledgerd import metrics

BEGIN = "<!-- metrics: written by python -m ledgerd.metrics_table -->\n"
END = "<!-- metrics: end -->\n"

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


class Row(Struct, frozen=True):
    """One metric. ``name`` is as one looks it up, ``series`` are the names in which its values appear."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    series: tuple[str, ...]


def rows() -> Iterator[Row]:
    """Every metric, in the order of `ledgerd.metrics`."""
    for metric in vars(metrics).values():
        if not isinstance(metric, Counter | Gauge | Histogram | Info):
            continue
        (family,) = metric.describe()
        series = tuple(family.name + suffix for suffix in _SUFFIXES[family.type])
        labels = tuple(metric._labelnames)  # noqa: SLF001 - a family without children does not tell them
        if family.type == "info":
            labels = ("version",)
        name = family.name if family.type == "histogram" else series[0]
        yield Row(name, family.type, labels, family.documentation, series)


def rendered() -> str:
    """The table as Markdown, between its two marks."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for row in rows():
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |")
    return BEGIN + "\n".join(lines) + "\n" + END


def with_table(page: str) -> str:
    """The page with the table of now between its marks. Raises ValueError if it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for the table")
    return before + rendered() + after


def main() -> None:
    """Write the table into the page of the checkout this module lies in."""
    page = Path(__file__).resolve().parents[1] / "systemd" / "monitoring" / "README.md"
    if not page.exists():
        sys.exit("This is an installed package, not a checkout; ask a daemon for /metrics instead.")
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
