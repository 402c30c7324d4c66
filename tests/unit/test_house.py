"""Data goes one way: which room may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "corebatch"
LEAVES = {"types", "errors", "options", "files", "seeds", "text", "scratch", "intervals", "step_line"}
METHODS = {"scoring", "transforms", "selectors"}
CHOOSE = LEAVES | {"model"} | METHODS | {"sources", "memory", "sampling", "distributed"}
RUN = CHOOSE | {"batch", "record", "trainer"}
ALLOWED = {
    "types": {"errors"},
    "errors": set(),
    "options": {"errors"},
    "files": {"errors"},
    "seeds": set(),
    "text": set(),
    "scratch": set(),
    "intervals": {"errors"},
    "step_line": set(),
    "model": LEAVES,
    "scoring": LEAVES | {"model"},
    "transforms": LEAVES,
    "selectors": LEAVES,
    "sources": LEAVES,
    "memory": LEAVES | {"scoring"},
    "sampling": LEAVES | {"sources"},
    "distributed": LEAVES,
    "batch": CHOOSE,
    "record": CHOOSE | {"batch"},
    "trainer": RUN,
    "mixture": LEAVES,
    "evaluation": LEAVES | {"model"},
    "rendering": LEAVES,
    "report": LEAVES | {"rendering"},
    "config": RUN | {"mixture"},
    "bench": RUN | {"config", "mixture", "evaluation", "report", "rendering"},
    "launch": RUN | {"config", "mixture", "evaluation", "report", "rendering"},
    "demo": RUN | {"mixture", "evaluation"},
}
EVERYBODY_ELSE = {"transformers", "peft", "trl", "accelerate", "datasets"}
WITHOUT_TRANSFORMERS = {
    "types",
    "errors",
    "options",
    "files",
    "seeds",
    "text",
    "scratch",
    "intervals",
    "step_line",
    "sources",
    "selectors",
    "transforms",
    "memory",
    "distributed",
    "rendering",
    "report",
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_comes_before_it(room):
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    assert files
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "corebatch" and len(parts) > 1:
                assert parts[1] in ALLOWED[room] | {room}, f"{path.name} imports {name}"
            if room in WITHOUT_TRANSFORMERS:
                assert parts[0] not in EVERYBODY_ELSE, f"{path.name} imports {name}"
