"""What error feedback is worth in training at equal steps: writes tables of results.md and noise_binds.md in
docs/evidence.

    python benchmarks/compare.py mathmix --settings benchmarks/compare_following.yaml --rows 2400 --output FOLDER
    python benchmarks/following.py following FOLDER
    python benchmarks/compare.py mathmix --settings benchmarks/compare_passes.yaml --model TINY --rows 1200 \\
        --output FOLDER
    python benchmarks/following.py passes FOLDER

and `exact` (compare_exact.yaml, TINY, 1,200 rows) and `wide` (compare_wide.yaml, TINY, 4,000 rows) in the same way.
The first of each pair trains (`corebatch compare`); the second copies the comparison's lines to `benchmarks/results`
and writes the page. Without a folder the page is written from the lines that are there.

"Of the way" is where an arm's mean loss lies between the small batch's (0 %) and the large one's (100 %). The
difference that can be found is that of a paired t-test with power 0.8 at 5 %, for the spread of differences that the
first study had.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from scipy.stats import t, ttest_rel

from corebatch.bench.runs import Comparison, read_comparison
from corebatch.bench.runs.power import detectable as smallest
from corebatch.bench.runs.power import of_comparison
from pages import ROOT, table, write_between

RESULTS, EVIDENCE = ROOT / "benchmarks" / "results", ROOT / "docs" / "evidence"
STUDIES = {"following": RESULTS / "compare-following", "passes": RESULTS / "compare-passes"}
STUDIES |= {name: RESULTS / f"compare-{name}" for name in ("exact", "wide")}
SMALL, LARGE, REFERENCE = "plain_small@steps", "plain_large@steps", "coreset@wall_clock"
MEANS = ("token", "example", "source")
FILES = ("comparison.json", "comparison.md", "plan.json", "runs.jsonl", "timing.jsonl", "tuning.jsonl")


def take(folder: Path | None, lines: Path) -> None:
    """Copies a comparison's files to where its lines are kept; nothing without a folder."""
    if folder is None:
        return
    lines.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, lines / name)


def losses(comparison: Comparison, arm: str, mean: str) -> dict[int, float]:
    """Final held-out losses by seed."""
    return {seed: run.final.losses[mean] for seed, run in comparison.of(arm).items() if run.final is not None}


def spread(values: list[float]) -> str:
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def step_seconds(comparison: Comparison, arm: str) -> float:
    """Of a step after the first epoch, as it was timed beside the other arms."""
    found = next(each for each in comparison.plan.arms if each.name == arm)
    return found.seconds_per_step[-1]


def of_the_way(comparison: Comparison, arm: str) -> str:
    """By each of the three means."""
    ways = []
    for mean in MEANS:
        small, large, own = (statistics.mean(losses(comparison, name, mean).values()) for name in (SMALL, LARGE, arm))
        ways.append(f"{100 * (small - own) / (small - large):.0f}")
    return " / ".join(ways) + " %"


def detectable(first: Comparison, seeds: int) -> str:
    """By each mean, the difference that a paired t-test over so many seeds finds with power 0.8 at 5 %, where pairs
    differ as much as the reference and another small arm do in `first`."""
    spread = of_comparison(first, [arm.name for arm in first.plan.arms if arm.name not in (REFERENCE, LARGE)])
    return ", ".join(f"{mean} mean {smallest(spread[mean].sd, seeds, 0.05):.3f}" for mean in MEANS)


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
    plain = step_seconds(comparison, SMALL)
    for arm in arms:
        runs = list(comparison.of(arm).values())
        tokens = statistics.mean(run.tokens_trained or 0 for run in runs)
        flops = statistics.mean(run.flops or 0.0 for run in runs)
        own = [spread(list(losses(comparison, arm, mean).values())) for mean in MEANS]
        cost = [f"{tokens:,.0f}", f"{flops / 1e12:.2f} T", f"{step_seconds(comparison, arm) / plain:.2f}"]
        rows.append([arm, str(len(runs)), *cost, *own, of_the_way(comparison, arm)])
    heads = [
        "arm",
        "seeds",
        "tokens trained",
        "FLOPs",
        "seconds a step",
        "token mean",
        "example mean",
        "source mean",
        "of the way (three means)",
    ]
    pairs = [[arm, *(against(comparison, REFERENCE, arm, mean) for mean in MEANS)] for arm in arms if arm != REFERENCE]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    hardware, versions = plan["hardware"], plan["versions"]
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    code = sorted({run["commit"][:10] + (" with changes" * run["commit"].endswith("+")) for run in runs})
    machine = f"{hardware['machine']}, {hardware['cpu_cores']} cores, {hardware['torch_threads']} thread a run, no GPU"
    count = len(comparison.of(REFERENCE))
    made = (
        f"{plan['train_rows']:,} rows, {plan['steps']} steps, {count} seeds; means ± half of "
        f"their 95 % interval; seconds a step, plain_small = 1. {machine}; torch {versions['torch']}, "
        f"transformers {versions['transformers']}; {plan['time'][:10]}, commit {', '.join(code)}."
    )
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in learning_rates(folder).items())
    if rates:
        made += f" Learning rates as tuned: {rates}."
    if folder != STUDIES["following"]:
        first = read_comparison(STUDIES["following"])
        made += f" Computed beforehand, {count} seeds find with power 0.8 a difference by"
        made += f" {detectable(first, count)}."
    return "\n\n".join(
        [
            table(heads, rows),
            "The reference less each arm, paired by seed:",
            table(["arm", *(f"{mean} mean" for mean in MEANS)], pairs),
            made,
        ]
    )


def learning_rates(folder: Path) -> dict[str, float]:
    """The tuned rate of each method; none where nothing was tuned."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    tuned = (folder / "tuning.jsonl").is_file()
    return {run["arm"].partition("@")[0]: run["learning_rate"] for run in runs if tuned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    args = parser.parse_args()
    lines = STUDIES[args.study]
    take(args.folder, lines)
    name = "results.md" if args.study == "following" else "noise_binds.md"
    write_between(EVIDENCE / name, args.study, page(read_comparison(lines), lines))


if __name__ == "__main__":
    main()
