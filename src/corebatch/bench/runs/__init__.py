"""Comparing methods honestly: what was run, what counts, and what it shows.

comparison = read_comparison("runs/compare")     # plan.json and runs.jsonl, finished or not
comparison.marks                                 # runs that are not comparable, and why
for table in terminal_tables(comparison): ...    # rich
write_outputs(comparison, "runs/compare")        # comparison.md and comparison.html; pip install 'corebatch[bench]'
"""

from corebatch.bench.runs.comparison import Comparison, ComparisonPlan, Mark, PlannedArm, Run
from corebatch.bench.runs.page import markdown, terminal_tables, write_outputs
from corebatch.bench.runs.reading import read_comparison, read_plan, read_runs

__all__ = [
    "Comparison",
    "ComparisonPlan",
    "Mark",
    "PlannedArm",
    "Run",
    "markdown",
    "read_comparison",
    "read_plan",
    "read_runs",
    "terminal_tables",
    "write_outputs",
]
