"""What choosing by a reference is worth where answers are wrong, at equal wall-clock: writes a part of
docs/methods/target.md.

    python benchmarks/compare.py dirty --output FOLDER
    python benchmarks/dirty.py FOLDER

The first trains (`corebatch compare`); the second copies the comparison's lines to `benchmarks/results` and writes the
page. Without a folder the page is written from the lines that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from corebatch.bench.runs import Comparison, read_comparison
from following import RESULTS, take
from objective import page
from pages import ROOT, write_between

LINES, PAGE = RESULTS / "compare-dirty", ROOT / "docs" / "methods" / "target.md"


def left_out(comparison: Comparison) -> str:
    """The token means of arms of which no run is in the tables, in a sentence for each."""
    told = []
    for arm in comparison.plan.arms:
        runs = [run for run in comparison.runs if run.arm == arm.name and run.final is not None]
        if runs and not comparison.of(arm.name):
            means = [run.final.losses["token"] for run in runs if run.final is not None]
            told.append(
                f"`{arm.method}` is in no table, since what it drew was not counted as what the others drew; its "
                f"{len(means)} runs ended at a token mean of {min(means):.3f} to {max(means):.3f}."
            )
    return " ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    args = parser.parse_args()
    take(args.folder, LINES)
    found = read_comparison(LINES)
    write_between(PAGE, "dirty pools", f"{page(found, LINES)}\n\n{left_out(found)}".strip())


if __name__ == "__main__":
    main()
