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

from corebatch.bench.runs import read_comparison
from following import RESULTS, take
from objective import page
from pages import ROOT, write_between

LINES, PAGE = RESULTS / "compare-dirty", ROOT / "docs" / "methods" / "target.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    args = parser.parse_args()
    take(args.folder, LINES)
    write_between(PAGE, "dirty pools", page(read_comparison(LINES), LINES))


if __name__ == "__main__":
    main()
