"""What the mean over sources is worth as the objective, and how large its pool should be, in training at equal
wall-clock: writes two parts of docs/evidence/results.md.

    python benchmarks/small_llama.py --vocabulary 2048 --hidden 128 --blocks 4 --data DATA --output TINY
    python benchmarks/compare.py mathmix --settings benchmarks/compare_objective.yaml --model TINY --rows 4000 \\
        --output FOLDER
    python benchmarks/objective.py objective FOLDER
    python benchmarks/compare.py mathmix --settings benchmarks/compare_pools.yaml --model TINY --rows 4000 \\
        --output FOLDER
    python benchmarks/objective.py pools FOLDER

The first of each pair trains (`corebatch compare`); the second copies the comparison's lines to `benchmarks/results`
and writes the page. Without a folder the page is written from the lines that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from corebatch.bench.runs import Comparison, read_comparison
from corebatch.bench.runs.statistics import Metric, PairedTest, losses, paired_tests
from following import PAGE, RESULTS, detectable, learning_rates, spread, take
from following import losses as final_losses
from pages import table, write_between

STUDIES = {"objective": RESULTS / "compare-objective", "pools": RESULTS / "compare-pools"}
SPREAD = {"objective": ("(c)", RESULTS / "compare-following"), "pools": ("(d)", STUDIES["objective"])}
"""From which earlier study the power is computed beforehand."""


def of_arms(comparison: Comparison) -> str:
    """What each arm trained for and on, and its final losses."""
    means = [metric.name for metric in losses(comparison)]
    rows = []
    for arm in comparison.plan.arms:
        runs = list(comparison.of(arm.name).values())
        if not runs:  # all left out
            continue
        tokens = statistics.mean(run.tokens_trained or 0 for run in runs)
        seconds = statistics.mean(run.seconds or 0.0 for run in runs)
        found = [list(final_losses(comparison, arm.name, mean).values()) for mean in means]
        steps = [f"{arm.steps:,}", f"{seconds:.1f}", f"{tokens:,.0f}"]
        rows.append([f"`{arm.method}`", arm.objective, str(len(runs)), *steps, *map(spread, found)])
    heads = ["arm", "objective", "seeds", "steps", "seconds", "tokens trained", *(f"{mean} mean" for mean in means)]
    return table(heads, rows)


def cell(test: PairedTest) -> str:
    """-0.0120 (-0.0180 to -0.0060; p = 0.002, Holm 0.01)"""
    if test.difference is None or test.low is None or test.high is None or test.p is None or test.p_holm is None:
        return test.verdict
    ends = f"{test.low:+.4f} to {test.high:+.4f}"
    return f"{test.difference:+.4f} ({ends}; p = {test.p:.2g}, after Holm {test.p_holm:.2g})"


def against(comparison: Comparison) -> str:
    """The reference less each baseline by each mean."""
    measured: list[Metric] = list(losses(comparison))
    found = [paired_tests(comparison, metric) for metric in measured]
    rows = [[f"`{tests[0].baseline.partition('@')[0]}`", *map(cell, tests)] for tests in zip(*found, strict=True)]
    return table(["baseline", *(f"{metric.title}" for metric in measured)], rows)


def page(comparison: Comparison, folder: Path, power: str = "") -> str:
    """Tables and where they come from; `power`: what could be found, in a sentence."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    hardware, versions = plan["hardware"], plan["versions"]
    code = sorted(
        {(run.commit or "")[:10] + " with changes" * (run.commit or "").endswith("+") for run in comparison.runs}
    )
    machine = f"{hardware['machine']}, {hardware['cpu_cores']} cores, {hardware['torch_threads']} thread a run, no GPU"
    edges = [arm.method for arm in comparison.plan.arms if arm.edge_of_grid]
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in learning_rates(folder).items())
    left_out = len(comparison.runs) - len(comparison.comparable)
    made = (
        f"{plan['train_rows']:,} rows; {plan['steps']} steps of the reference, whose {plan['seconds']:.1f} seconds are "
        f"the budget of all; {len(plan['seeds'])} seeds; means ± half of their 95 % interval; two-sided paired "
        f"t-tests, Holm's correction over the baselines. {left_out} runs are left out. Learning rates, tuned by the "
        f"{plan['tuning']['metric']} mean on rows of their own: {rates}"
        f"{' (at the edge of the grid: ' + ', '.join(edges) + ')' if edges else ''}. {machine}; torch "
        f"{versions['torch']}, transformers {versions['transformers']}; {plan['time'][:10]}, commit {', '.join(code)}. "
        f"{power}"
    )
    sources = table(
        ["source", *(f"`{arm.method}`" for arm in comparison.plan.arms)],
        [
            [name, *(of_source(comparison, arm.name, name) for arm in comparison.plan.arms)]
            for name in comparison.sources
        ],
    )
    return "\n\n".join(
        [
            of_arms(comparison),
            "`coreset` less each baseline, paired by seed (95 % interval):",
            against(comparison),
            "Final loss by source:",
            sources,
            made,
        ]
    )


def of_source(comparison: Comparison, arm: str, source: str) -> str:
    found = [run.final.sources[source] for run in comparison.of(arm).values() if run.final is not None]
    return f"{statistics.mean(found):.3f}" if found else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    args = parser.parse_args()
    lines, (where, before) = STUDIES[args.study], SPREAD[args.study]
    take(args.folder, lines)
    found = read_comparison(lines)
    power = (
        f"Computed beforehand, from the spread in {where}, so many seeds find with power 0.8 a difference by "
        f"{detectable(read_comparison(before), len({run.seed for run in found.runs}))}."
    )
    write_between(PAGE, args.study, page(found, lines, power))


if __name__ == "__main__":
    main()
