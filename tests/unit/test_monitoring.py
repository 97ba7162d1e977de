"""Metrics, alerts and the dashboard go together: what is asked for exists, and what exists is documented."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ledgerd import metrics_table
from ledgerd.gateway.places import Reason
from ledgerd_protocol.errors import ERROR_CODES

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "systemd" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "dashboard.json"
ROWS = list(metrics_table.rows())

OF_THE_PROCESS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "up",
}
SERIES = {name: set(row.labels) for row in ROWS for name in row.series} | {name: set() for name in OF_THE_PROCESS}
TARGET = {"instance", "job"}
UNITS = ("_seconds", "_bytes", "_total", "_info")
COUNTS = {
    "ledgerd_connections", "ledgerd_newcomers", "ledgerd_subscriptions", "ledgerd_monitors", "ledgerd_user_workers",
    "ledgerd_units_waiting", "ledgerd_units_waiting_peak", "ledgerd_lanes", "ledgerd_lanes_busy",
    "ledgerd_batch_commands", "ledgerd_database_up",
}  # fmt: skip
"""Gauges and histograms that count things, and so have no unit."""

VALUES = {
    "code": {code.text for code in ERROR_CODES.values()} | {"ok"},
    "reason": {*get_args(Reason), "files"},
    "outcome": {"ok", "rerun", "refused", "unavailable", "accepted", "throttled", "applied"},
    "means": {"password", "token"},
    "level": {"debug", "info", "warning", "error", "critical"},
}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_the_table_of_metrics_is_the_one_of_the_code():
    page = (MONITORING / "README.md").read_text(encoding="utf-8")
    assert page == metrics_table.with_table(page), "run: python -m ledgerd.metrics_table"


def test_a_page_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="no place"):
        metrics_table.with_table("nothing here")


def test_metrics_are_named_as_is_usual_and_say_what_they_mean():
    for row in ROWS:
        assert re.fullmatch(r"ledgerd(_[a-z]+)+", row.name), row
        assert row.name.endswith(UNITS) or row.name in COUNTS, row
        assert (row.kind == "counter") == row.name.endswith("_total"), row
        assert row.meaning.endswith((".", "?")), row
        assert "le" not in row.labels


def test_labels_are_the_few_whose_values_are_ours():
    assert {label for row in ROWS for label in row.labels} == {"method", "alert", "version", *VALUES}


def test_no_metric_is_made_elsewhere():
    makers = {"Counter", "Gauge", "Histogram", "Info", "Summary", "Enum"}
    for path in (ROOT / "ledgerd").rglob("*.py"):
        if path.name in ("metrics.py", "metrics_table.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "prometheus_client":
                assert makers.isdisjoint(alias.name for alias in node.names), path


# -- expressions -------------------------------------------------------------------------------------------------------


def of_alerts() -> list[str]:
    """The expressions of the alerts. They are in one line, or folded; both end where the indentation does."""
    text = ALERTS.read_text(encoding="utf-8")
    found = re.findall(r"^ {8}expr: (?:>-\n((?: {10}.*\n)+)|(.+)\n)", text, re.MULTILINE)
    return [" ".join((folded or line).split()) for folded, line in found]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"])


def of_dashboard() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def objections(expression: str) -> Iterator[str]:
    """What is asked for and does not exist: a metric, a label of it, a value of a label."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:ledgerd|process|python|up)\w*\b", re.sub(r"\{[^}]*\}|\([a-z, ]+\) \(", "", bare)))
    yield from (f"no metric {name}" for name in names - SERIES.keys())
    for name, selectors in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, _, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selectors):
            bucket = {"le"} if name.endswith("_bucket") else set()
            if label not in SERIES.get(name, set()) | TARGET | bucket:
                yield f"{name} has no label {label}"
            if label in VALUES and not set(value.split("|")) <= VALUES[label]:
                yield f"{label} is never {value}"
    for grouped in re.findall(r"\bby \(([a-z, ]+)\)", expression):
        known = TARGET | {"le"} | {label for name in names for label in SERIES.get(name, ())}
        yield from (f"nothing to group by {label}" for label in set(grouped.split(", ")) - known)


@pytest.mark.parametrize("expression", [*of_alerts(), *of_dashboard()])
def test_an_expression_asks_for_what_exists(expression):
    assert list(objections(expression)) == []


@pytest.mark.parametrize(
    "expression",
    [
        "ledgerd_fence_hits > 0",
        'rate(ledgerd_requests_total{status="ok"}[5m])',
        'rate(ledgerd_requests_total{code="insufficient"}[5m])',
        "sum by (instance, user) (rate(ledgerd_requests_total[5m]))",
        "histogram_quantile(0.9, rate(ledgerd_commit_duration_bucket[5m]))",
    ],
)
def test_an_expression_that_asks_for_something_else_is_objected_to(expression):
    assert list(objections(expression)) != []


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_every_alert_has_a_severity_says_what_happened_and_what_to_do():
    rules = re.split(r"^ {6}- alert: ", ALERTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    names = [rule.partition("\n")[0] for rule in rules]
    assert len(set(names)) == len(names) == len(of_alerts())
    for rule in rules:
        assert re.search(r"^ {8}labels: \{severity: (critical|warning|info)\}$", rule, re.MULTILINE), rule
        assert re.search(r'^ {10}summary: ".*\{\{ \$labels\.instance \}\}.*"$', rule, re.MULTILINE), rule
        assert re.search(r"^ {10}description: ", rule, re.MULTILINE), rule


@needs_promtool
def test_prometheus_takes_the_alerts():
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", ALERTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_alerts_say_what_they_should_to_what_happens():
    command = ["promtool", "test", "rules", MONITORING / "alerts_test.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- dashboard ---------------------------------------------------------------------------------------------------------


def test_the_dashboard_has_panels_that_do_not_overlap_and_ask_the_chosen_source():
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 20
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["targets"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"] for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables == {"datasource", "instance"}


@needs_promtool
def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, expression in enumerate(of_dashboard())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
