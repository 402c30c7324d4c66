"""What error feedback on label counts is worth at equal steps: writes a table of docs/evidence/results.md.

    python benchmarks/compare.py mathmix --settings benchmarks/compare_following.yaml --rows 2400 --output FOLDER
    python benchmarks/following.py FOLDER

The first trains (`corebatch compare`); the second copies the comparison's lines to `benchmarks/results` and writes the
page. Without a folder the page is written from the lines that are there.

"Of the way" is where an arm's mean loss lies between the small batch's (0 %) and the large one's (100 %).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from scipy.stats import t, ttest_rel

from corebatch.bench.runs import Comparison, read_comparison
from pages import ROOT, table, write_between

LINES, PAGE = ROOT / "benchmarks" / "results" / "compare-following", ROOT / "docs" / "evidence" / "results.md"
SMALL, LARGE, REFERENCE = "plain_small@steps", "plain_large@steps", "coreset@wall_clock"
MEANS = ("token", "example", "source")
FILES = ("comparison.json", "comparison.md", "plan.json", "runs.jsonl", "timing.jsonl")


def losses(comparison: Comparison, arm: str, mean: str) -> dict[int, float]:
    """Final held-out losses by seed."""
    return {seed: run.final.losses[mean] for seed, run in comparison.of(arm).items() if run.final is not None}


def spread(values: list[float]) -> str:
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def of_the_way(comparison: Comparison, arm: str) -> str:
    small, large, own = (statistics.mean(losses(comparison, name, "token").values()) for name in (SMALL, LARGE, arm))
    return f"{100 * (small - own) / (small - large):.0f} %"


def against(comparison: Comparison, arm: str, other: str, mean: str) -> str:
    """The paired difference, with p of a two-sided t-test that is not corrected."""
    ours, theirs = losses(comparison, arm, mean), losses(comparison, other, mean)
    seeds = sorted(ours.keys() & theirs.keys())
    first, second = [ours[s] for s in seeds], [theirs[s] for s in seeds]
    difference = statistics.mean(a - b for a, b in zip(first, second, strict=True))
    return f"{difference:+.4f} (p = {ttest_rel(first, second).pvalue:.2g})"


def page(comparison: Comparison, folder: Path) -> str:
    arms = [arm.name for arm in comparison.plan.arms]
    rows = []
    for arm in arms:
        runs = list(comparison.of(arm).values())
        tokens = statistics.mean(run.tokens_trained or 0 for run in runs)
        flops = statistics.mean(run.flops or 0.0 for run in runs)
        own = [spread(list(losses(comparison, arm, mean).values())) for mean in MEANS]
        rows.append([arm, str(len(runs)), f"{tokens:,.0f}", f"{flops / 1e12:.2f} T", *own, of_the_way(comparison, arm)])
    heads = ["arm", "seeds", "tokens trained", "FLOPs", "token mean", "example mean", "source mean", "of the way"]
    pairs = [[arm, *(against(comparison, REFERENCE, arm, mean) for mean in MEANS)] for arm in arms if arm != REFERENCE]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    hardware, versions = plan["hardware"], plan["versions"]
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    code = sorted({run["commit"][:10] + (" with changes" * run["commit"].endswith("+")) for run in runs})
    machine = f"{hardware['machine']}, {hardware['cpu_cores']} cores, {hardware['torch_threads']} thread a run, no GPU"
    made = (
        f"{plan['train_rows']:,} rows, {plan['steps']} steps, {len(comparison.of(REFERENCE))} seeds; means ± half of "
        f"their 95 % interval. {machine}; torch {versions['torch']}, transformers {versions['transformers']}; "
        f"{plan['time'][:10]}, commit {', '.join(code)}."
    )
    return "\n\n".join(
        [
            table(heads, rows),
            "The reference less each arm, paired by seed:",
            table(["arm", *(f"{mean} mean" for mean in MEANS)], pairs),
            made,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    folder = parser.parse_args().folder
    if folder is not None:
        LINES.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(folder / name, LINES / name)
    write_between(PAGE, "following", page(read_comparison(LINES), LINES))


if __name__ == "__main__":
    main()
