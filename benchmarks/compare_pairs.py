"""Every pair of arms of a comparison, paired by seed: what docs/evidence/results.md quotes beside the main tests.

    python benchmarks/compare_pairs.py benchmarks/results/compare-mathmix

Two-sided t-tests, not corrected: for what `corebatch compare` tests and corrects see its comparison.md.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import combinations
from pathlib import Path

from scipy.stats import ttest_rel

from corebatch.bench.runs import read_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    comparison = read_comparison(parser.parse_args().folder)
    print("| arm | less | mean | seeds | difference | standard deviation | p, not corrected | below 0 |")
    print("|---|---|---|---|---|---|---|---|")
    for one, other in combinations([arm.name for arm in comparison.plan.arms], 2):
        ours, theirs = comparison.of(one), comparison.of(other)
        seeds = sorted(ours.keys() & theirs.keys())
        for mean in ("token", "example", "source"):
            first, second = ([runs[seed].final.losses[mean] for seed in seeds] for runs in (ours, theirs))
            differences = [a - b for a, b in zip(first, second, strict=True)]
            if len(differences) > 1:
                p = ttest_rel(first, second).pvalue
                print(
                    f"| {one} | {other} | {mean} | {len(seeds)} | {statistics.mean(differences):+.4f} | "
                    f"{statistics.stdev(differences):.4f} | {p:.4f} | {sum(d < 0 for d in differences)} |"
                )


if __name__ == "__main__":
    main()
