"""Data goes one way: which room may import which. Files, functions and classes stay small, names are of one thing."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "corebatch"
LEAVES = {"types", "errors", "options", "files", "seeds", "text", "scratch", "intervals", "step_line", "noise"}
METHODS = {"scoring", "transforms", "selectors"}
CHOOSE = LEAVES | {"model", "optimizers"} | METHODS | {"sources", "objective", "memory", "sampling", "distributed"}
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
    "noise": {"errors"},
    "optimizers": LEAVES,
    "model": LEAVES | {"optimizers"},
    "scoring": LEAVES | {"model"},
    "transforms": LEAVES,
    "selectors": LEAVES,
    "sources": LEAVES,
    "objective": LEAVES | {"sources", "sampling"},
    "memory": LEAVES | {"scoring"},
    "subset": LEAVES | METHODS | {"sources", "objective", "memory"},
    "sampling": LEAVES | {"sources", "memory", "selectors"},
    "distributed": LEAVES,
    "batch": CHOOSE,
    "record": CHOOSE | {"batch"},
    "trainer": RUN,
    "mixture": LEAVES,
    "evaluation": LEAVES | {"model"},
    "rendering": LEAVES,
    "report": LEAVES | {"rendering"},
    "config": RUN | {"mixture"},
    "bench": RUN | {"config", "mixture", "evaluation", "report", "rendering", "subset", "launch"},
    "launch": RUN | {"config", "mixture", "evaluation", "report", "rendering", "subset"},
    "demo": RUN | {"mixture", "evaluation"},
    "integrations": RUN | {"mixture"},
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
    "noise",
    "optimizers",
    "sources",
    "selectors",
    "transforms",
    "memory",
    "subset",
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


# ---- caps ------------------------------------------------------------------------------------------------------------

FILE, FUNCTION, CLASS = 330, 60, 16
"""The most lines of a file and of a function, and the most methods of a class."""

# What exceeds a cap, with the number that it has: an entry may go, and its number may fall.
LONGER_FILES: dict[str, int] = {}
LONGER_FUNCTIONS = {
    "batch/micro_batches.py micro_batches": 61,
    "record/example_counts.py count_examples": 73,
    "report/totals.py summarise": 61,
    "selectors/gradient_matching.py pursue": 70,
    "selectors/kernels/exchange.py exchange_loop": 61,
    "selectors/kernels/greedy.py greedy_loop": 74,
}
LARGER_CLASSES: dict[str, int] = {}
NAMES_OF_SEVERAL_CLASSES = {
    "Choice": 2,
    "Example": 2,
    "Place": 2,
    "Recalled": 2,
}


@cache
def trees():
    """Of each file of the package, by its path within it."""
    return {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def defined(kind):
    """(path and name, node) of all functions or classes."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{path} {node.name}", node


def over(found, cap, known):
    """What exceeds the cap by more than is known."""
    return {name: number for name, number in found.items() if number > max(cap, known.get(name, 0))}


def test_files_are_short():
    lines = {str(path): len((PACKAGE / path).read_text().splitlines()) for path in trees()}
    assert not over(lines, FILE, LONGER_FILES)


def test_functions_are_short():
    lines = {name: node.end_lineno - node.lineno + 1 for name, node in defined(ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not over(lines, FUNCTION, LONGER_FUNCTIONS)


def test_classes_have_few_methods():
    methods = {
        name: sum(isinstance(part, ast.FunctionDef) for part in node.body) for name, node in defined(ast.ClassDef)
    }
    assert not over(methods, CLASS, LARGER_CLASSES)


def test_no_name_is_of_two_classes():
    places = defaultdict(list)
    for name, node in defined(ast.ClassDef):
        places[node.name].append(name)
    assert not {name: own for name, own in places.items() if len(own) > NAMES_OF_SEVERAL_CLASSES.get(name, 1)}


def test_what_is_private_stays_in_its_room():
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("corebatch."):
                room = node.module.split(".")[1]
                private = [
                    name for name in (*node.module.split("."), *(a.name for a in node.names)) if is_private(name)
                ]
                assert not private or room == path.parts[0].removesuffix(".py"), f"{path} imports {private} of {room}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_modules_have_no_cycle():
    names = {"corebatch." + ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in trees()}
    graph = {}
    for name, path in names.items():
        found = set()
        for node in runtime(trees()[path]):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        # A module may take another one from its own room's face, which imports both.
        graph[name] = {other for other in found & set(names) if not name.startswith(f"{other}.")} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def runtime(node):
    """All below it that is not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from runtime(child)


def test_no_two_test_files_have_one_name():
    """pytest takes the second for the first, and collects neither."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
