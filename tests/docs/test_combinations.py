"""The table of combinations names tests that are there, and leaves none out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "combinations"
UNNAMED = {  # of parts, not of combinations
    "test_rows.py::test_the_limit_is_where_the_model_ends",
    "test_rows.py::test_adapters_and_tied_heads_do_not_hide_the_limits",
    "test_rows.py::test_what_is_right_passes_without_a_look_at_rows",
    "test_compile.py::test_nothing_is_learnt_from_training_and_the_log_says_so",
    "test_compile.py::test_by_default_nothing_is_scored_or_remembered",
    "test_streams.py::test_ways_of_scoring_without_a_memory",
}


def written():
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.name}::{node.name}"


def test_the_table_and_the_tests_are_in_step():
    named = re.findall(r"`(test_\w+\.py::\w+)`", (ROOT / "docs" / "running" / "combinations.md").read_text())
    assert len(named) == len(set(named))
    assert set(named) | UNNAMED == set(written())
    assert not set(named) & UNNAMED
