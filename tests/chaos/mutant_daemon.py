"""A daemon with a bug: `python mutant_daemon.py EDITS serve ...`, where EDITS is JSON of edits per module.

Each edit replaces a text that must stand in the module's source exactly once; a daemon whose bug cannot be put in does
not start, so that no test passes because a bug was not there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType

Edits = dict[str, list[list[str]]]


class Edited(importlib.machinery.SourceFileLoader):
    """Loads one module with its edits."""

    def __init__(self, name: str, path: str, edits: list[list[str]]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> object:
        source = self.get_data(self.path).decode()
        for old, new in self._edits:
            if source.count(old) != 1:
                raise SystemExit(f"{fullname} has {source.count(old)} times: {old}")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have edits before anybody else does."""

    def __init__(self, edits: Edits) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._edits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = Edited(fullname, spec.origin, self._edits[fullname])
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder(json.loads(sys.argv.pop(1))))
    sys.argv[0] = "ledgerd"
    runpy.run_module("ledgerd", run_name="__main__", alter_sys=True)
