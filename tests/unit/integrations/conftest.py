"""Stand-ins for the modules of hosts, which live in environments of their own; `make hosts` runs the hosts."""

import sys
from importlib import import_module
from types import ModuleType

import pytest


@pytest.fixture
def stand_in(monkeypatch):
    """Makes modules by their full names, and loads a plug-in of ours over them, anew in each test."""

    def make(plugin, **modules):
        for path, names in modules.items():
            path = path.replace("__", ".")
            for end in [i for i, letter in enumerate(path) if letter == "."] + [len(path)]:
                if path[:end] not in sys.modules:
                    monkeypatch.setitem(sys.modules, path[:end], ModuleType(path[:end]))
                    parent, _, name = path[:end].rpartition(".")
                    if parent:
                        monkeypatch.setattr(sys.modules[parent], name, sys.modules[path[:end]], raising=False)
            for name, value in names.items():
                setattr(sys.modules[path], name, value)
        monkeypatch.delitem(sys.modules, plugin, raising=False)
        made = import_module(plugin)
        monkeypatch.setitem(sys.modules, plugin, made)  # gone after the test
        return made

    return make
