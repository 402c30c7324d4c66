"""The pages on claims in docs/evidence: for each a table and a plot of its comparison, and an index with verdicts.

    python benchmarks/claims.py take STUDY FOLDER     # copies the lines of a finished comparison, then writes
    python benchmarks/claims.py                       # writes all pages from the lines that are there

A study is a comparison of `corebatch compare`; its lines are in benchmarks/results/compare-STUDY. What trains it is
`python benchmarks/compare.py` with benchmarks/compare_STUDY.yaml, as the first lines of that file have it. Learnt rows
have a script of their own (benchmarks/learnt.py), whose lines are read for the plot and the index, and so have the
studies whose page says how far an arm is on the way to a large batch (benchmarks/following.py). Verdicts, dates and
seeds in the index are of the lines.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from corebatch.bench.runs import Comparison, PlannedArm, read_comparison
from corebatch.bench.runs import format as words
from corebatch.bench.runs.comparison import Run
from corebatch.bench.runs.statistics import (
    Estimate,
    Metric,
    PairedTest,
    estimate,
    first_reached,
    losses,
    metrics,
    paired_tests,
    values,
)
from corebatch.bench.runs.task_tables import task_sources
from following import RESULTS, detectable, learning_rates, spread, take
from pages import ROOT, table, write_between

EVIDENCE = ROOT / "docs" / "evidence"
LARGE = "plain_large"  # costs several times a step of the others: no baseline at equal steps
NOT_RUN = "**Not run yet**: there are no lines in `benchmarks/results/{}`."


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison whose lines are kept.

    Attributes:
        name: of its part of the page, and of compare-NAME.
        arm: the method that is tested against the baselines; empty: the reference.
        by: the metric of verdict and plot; empty: what the reference's objective is about.
        before: the study whose spread told beforehand what its seeds can find.
        to_loss_of: an arm to whose last loss the seconds are told; empty: to none.
        told: what stands before its verdict in the index.
        against: arms that it is tested against as well, which the plan calls no baselines.
        written: False where another script writes its part, and only plot and verdict are made here.
    """

    name: str
    arm: str = ""
    by: str = ""
    before: str = ""
    to_loss_of: str = ""
    told: str = ""
    against: tuple[str, ...] = ()
    written: bool = True

    @property
    def folder(self) -> Path:
        return RESULTS / f"compare-{self.name}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the index and a page.

    Attributes:
        letter, text: how it is named.
        page: in docs/evidence, without its ending.
    """

    letter: str
    text: str
    page: str
    studies: tuple[Study, ...] = field(default=())


def at_steps(*methods: str) -> tuple[str, ...]:
    """Names of arms at equal steps."""
    return tuple(f"{method}@steps" for method in methods)


CLAIMS = (
    Claim(
        letter="a",
        text="The same update for less work",
        page="same_update",
        studies=(Study(name="same-update", to_loss_of="accumulated@wall_clock"),),
    ),
    Claim(
        letter="b",
        text="The mean over sources as the objective",
        page="objective_sources",
        studies=(Study(name="objective", before="following"),),
    ),
    Claim(letter="c", text="Learnt rows left out of passes", page="learnt_rows"),
    Claim(letter="d", text="A dirty pool", page="dirty_pool", studies=(Study(name="dirty", arm="filter"),)),
    Claim(
        letter="e",
        text="The mean over tokens, where noise limits a step",
        page="noise_binds",
        studies=(
            Study(name="passes", told="4 of 16: ", written=False),
            Study(name="wide", told="8 of 64: ", written=False),
            Study(name="above", told="64 of 256, noise below a step's: "),
        ),
    ),
    Claim(
        letter="f",
        text="A new skill, and what is kept",
        page="replay",
        studies=(Study(name="replay", against=("half@wall_clock", "chosen@wall_clock")),),
    ),
    Claim(
        letter="g",
        text="CoLM's own table",
        page="colm_table",
        studies=(
            Study(
                name="colm",
                told="16 of 32: ",
                against=at_steps("plain_sorted", "plain_large_sorted", "plain_64", "default"),
            ),
            Study(
                name="colm-smollm2",
                told="SmolLM2, 8 of 16: ",
                against=at_steps("plain_sorted", "plain_large_sorted", "plain_32"),
            ),
        ),
    ),
)
BESIDE = {"results": (Study(name="pools", before="objective"),)}
"""Studies that are no claim of the index, by page."""


# ---- a comparison ----------------------------------------------------------------------------------------------------


def read(study: Study) -> Comparison | None:
    """Its lines; None without any. Where the plan calls no arm a baseline (all are at equal steps), those are that
    cost about as much."""
    if not (study.folder / "plan.json").is_file():
        return None
    found = read_comparison(study.folder)
    first, more = found.plan.reference_arm, study.against
    if found.plan.baselines and not more:
        return found
    if more:
        arms = (replace(arm, baseline=arm.baseline or arm.name in more) for arm in found.plan.arms)
    else:
        arms = (replace(arm, baseline=arm is not first and arm.method != LARGE) for arm in found.plan.arms)
    return replace(found, plan=replace(found.plan, arms=tuple(arms)))


def label(arm: PlannedArm) -> str:
    """`plain_small`, or `plain_small` at equal steps."""
    return f"`{arm.method}`" + ("" if arm.budget == "wall_clock" else f" at {words.BUDGETS[arm.budget]}")


def labels(comparison: Comparison) -> dict[str, str]:
    """By the arms' names. Where every baseline is at equal steps, that goes without saying."""
    alike = len({arm.budget for arm in comparison.plan.baselines}) == 1
    return {
        arm.name: f"`{arm.method}`" if arm.baseline and alike and arm.budget == "steps" else label(arm)
        for arm in comparison.plan.arms
    }


def tested(comparison: Comparison, study: Study) -> PlannedArm:
    """The arm of the verdict."""
    plan = comparison.plan
    arm = plan.arm(f"{study.arm}@wall_clock") if study.arm else plan.reference_arm
    if arm is None:
        raise SystemExit(f"{study.folder}: expected an arm {study.arm or plan.reference} in plan.json.")
    return arm


def metric_of(comparison: Comparison, study: Study) -> Metric:
    found = {metric.name: metric for metric in metrics(comparison)}
    return found[study.by] if study.by else losses(comparison)[0]


def paired(comparison: Comparison, arm: PlannedArm, metric: Metric) -> tuple[PairedTest, ...]:
    """Of an arm against all baselines, and the reference where it is another."""
    first = comparison.plan.reference_arm
    arms = tuple(replace(each, baseline=each.baseline or each is first) for each in comparison.plan.arms)
    whole = replace(comparison, plan=replace(comparison.plan, arms=arms))
    return paired_tests(whole, metric, arm.name)


def of_arms(comparison: Comparison) -> str:
    """What each arm trained for and on, and its final losses."""
    rows, named = [], labels(comparison)
    for arm in comparison.plan.arms:
        runs = list(comparison.of(arm.name).values())
        if not runs:  # all left out
            continue
        tokens = statistics.mean(run.tokens_trained or 0 for run in runs)
        seconds = statistics.mean(run.seconds or 0.0 for run in runs)
        found = [of_metric(list(values(comparison, arm.name, each).values()), each) for each in metrics(comparison)]
        steps = [f"{arm.steps:,}", f"{seconds:.1f}", f"{tokens:,.0f}"]
        rows.append([named[arm.name], arm.objective, str(len(runs)), *steps, *found])
    heads = ["arm", "objective", "seeds", "steps", "seconds", "tokens trained"]
    return table([*heads, *(metric.title for metric in metrics(comparison))], rows)


def of_metric(found: list[float], metric: Metric) -> str:
    return words.estimate(metric, estimate(found)) if metric.task or len(found) < 2 else spread(found)


def cell(test: PairedTest) -> str:
    """-0.0120 (-0.0180 to -0.0060; p = 0.002, after Holm 0.01)"""
    if test.difference is None or test.low is None or test.high is None or test.p is None or test.p_holm is None:
        return test.verdict
    apart, ends = words.difference(test.metric, test.difference), words.interval(test)
    return f"{apart} ({ends}; p = {test.p:.2g}, after Holm {test.p_holm:.2g})"


def against(comparison: Comparison, arm: PlannedArm) -> str:
    """The arm less each baseline by each metric."""
    measured, named = metrics(comparison), labels(comparison)
    found = [paired(comparison, arm, metric) for metric in measured]
    rows = [[named[tests[0].baseline], *map(cell, tests)] for tests in zip(*found, strict=True)]
    told = f"{named[arm.name]} less each baseline, paired by seed (95 % interval):"
    return f"{told}\n\n{table(['baseline', *(metric.title for metric in measured)], rows)}"


def of_sources(comparison: Comparison) -> str:
    """Final losses by source."""
    named = labels(comparison)

    def mean(arm: PlannedArm, source: str) -> str:
        runs = [run.final for run in comparison.of(arm.name).values() if run.final is not None]
        return f"{statistics.mean(final.sources[source] for final in runs):.3f}"

    arms = [arm for arm in comparison.plan.arms if comparison.of(arm.name)]
    rows = [[source, *(mean(arm, source) for arm in arms)] for source in comparison.sources]
    return table(["source", *(named[arm.name] for arm in arms)], rows)


def of_answers(comparison: Comparison) -> str:
    """Exact answers by source; empty without a task of several sources."""
    named = labels(comparison)
    heads = ["source", *(named[arm.name] for arm in comparison.plan.arms if comparison.of(arm.name))]
    return "\n\n".join(f"{sheet.title}:\n\n{table(heads, sheet.rows)}" for sheet in task_sources(comparison))


def left_out(comparison: Comparison) -> str:
    """The first means of arms of which no run is in the tables, in a sentence for each, with the reason."""
    told, mean = [], comparison.plan.means[0]
    for arm in comparison.plan.arms:
        runs = [run for run in comparison.runs if run.arm == arm.name and run.final is not None]
        if runs and not comparison.of(arm.name):
            found = [run.final.losses[mean] for run in runs if run.final is not None]
            reason = next(mark.text for mark in comparison.marks if mark.arm == arm.name and mark.excludes)
            told.append(
                f"`{arm.method}` is in no table ({reason}); its {len(found)} runs ended at a {mean} mean of "
                f"{min(found):.3f} to {max(found):.3f}."
            )
    return " ".join(told)


def made(comparison: Comparison, study: Study) -> str:
    """Where the numbers are from, and what could be found."""
    plan = json.loads((study.folder / "plan.json").read_text(encoding="utf-8"))
    hardware, versions, tuning = plan["hardware"], plan["versions"], plan["tuning"]
    code = sorted(
        {(run.commit or "")[:10] + " with changes" * (run.commit or "").endswith("+") for run in comparison.runs}
    )
    edges = [arm.method for arm in comparison.plan.arms if arm.edge_of_grid]
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in learning_rates(study.folder).items())
    edge = f" (at the edge of the grid: {', '.join(dict.fromkeys(edges))})" if edges else ""
    tuned = f"Learning rates, tuned by the {tuning['metric']} mean on rows of their own: {rates}{edge}."
    out = len(comparison.runs) - len(comparison.comparable)
    errors = {arm.method: arm.seconds_error for arm in comparison.plan.arms if arm.seconds_error}
    unsure = ", ".join(f"{method} {100 * error:.1f} %" for method, error in errors.items())
    timed = f" Standard errors of seconds a step over the reference's: {unsure}." if unsure else ""
    seeds = len({run.seed for run in comparison.runs})
    before = ""
    if study.before:
        earlier = RESULTS / f"compare-{study.before}"
        before = (
            f" Computed beforehand, from the spread in `{earlier.relative_to(ROOT)}`, so many seeds find with power "
            f"0.8 a difference by {detectable(read_comparison(earlier), seeds)}."
        )
    return (
        f"{plan['train_rows']:,} rows; {plan['steps']:,} steps of the reference, whose {plan['seconds']:.1f} seconds "
        f"are the budget of all; {seeds} seeds; means ± half of their 95 % interval; two-sided paired t-tests, Holm's "
        f"correction over the baselines. {out} runs are left out.{timed} "
        f"{tuned if rates else 'One rate for all, not tuned.'} {hardware['machine']}, {hardware['cpu_cores']} cores, "
        f"{hardware['torch_threads']} thread a run, no GPU; torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {plan['time'][:10]}, commit {', '.join(code)}.{before}"
    )


def text_of(comparison: Comparison, study: Study, plot: str) -> str:
    """All of a study."""
    arm, first = tested(comparison, study), comparison.plan.reference_arm
    parts = [
        f"![`{arm.method}` against each baseline]({plot})" if plot else "",
        of_arms(comparison),
        seconds_to_loss(comparison, study),
        against(comparison, arm),
        against(comparison, first) if first is not None and first is not arm else "",
        "Final loss by source:",
        of_sources(comparison),
        of_answers(comparison),
        made(comparison, study),
        left_out(comparison),
    ]
    return "\n\n".join(part for part in parts if part)


# ---- seconds to a loss -----------------------------------------------------------------------------------------------


def curve(run: Run, mean: str) -> tuple[list[float], list[float]]:
    points = [point for point in run.curve if mean in point.losses]
    return [point.spent["seconds"] for point in points], [point.losses[mean] for point in points]


def shares_of_seconds(comparison: Comparison, arm: str, other: str) -> list[float]:
    """By seed: the arm's seconds to the higher of the two last losses, over the other's."""
    mean, found = comparison.plan.means[0], []
    ours, theirs = comparison.of(arm), comparison.of(other)
    for seed in sorted(ours.keys() & theirs.keys()):
        curves = [curve(runs[seed], mean) for runs in (ours, theirs)]
        goal = max(found_losses[-1] for _, found_losses in curves)
        first, second = (first_reached(*each, goal) for each in curves)
        if first is not None and second:
            found.append(first / second)
    return found


def geometric(shares: Sequence[float]) -> Estimate | None:
    """Mean and interval of ratios, by their logarithms."""
    found = estimate([math.log(share) for share in shares])
    if found is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Estimate(n=found.n, mean=math.exp(found.mean), low=low, high=high)


def ratio(found: Estimate) -> str:
    ends = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.mean:.2f}{ends}"


def seconds_to_loss(comparison: Comparison, study: Study) -> str:
    """Seconds to the same loss and of a step over those of the arm that the study names; empty where it names none."""
    other = comparison.plan.arm(study.to_loss_of) if study.to_loss_of else None
    if other is None:
        return ""
    arm = tested(comparison, study)
    step, reached = step_and_reached(comparison, arm, other)
    return (
        f"Seconds of {label(arm)} over those of {label(other)}: of a step {step:.2f}; to the higher of the two last "
        f"losses, by curves on a part of the held-out rows, geometric mean and 95 % interval: {reached}."
    )


def step_and_reached(comparison: Comparison, arm: PlannedArm, other: PlannedArm) -> tuple[float, str]:
    """Seconds of a step, and to the same loss, over those of another arm."""
    found = geometric(shares_of_seconds(comparison, arm.name, other.name))
    reached = "no seed has both curves" if found is None else f"{ratio(found)}, {found.n} seeds"
    return arm.seconds_per_step[-1] / other.seconds_per_step[-1], reached


def in_readme(study: Study) -> str:
    """What the README says of the same update."""
    comparison = read(study)
    other = None if comparison is None else comparison.plan.arm(study.to_loss_of)
    if comparison is None or other is None:
        return "**The same update for less work**: not run yet."
    step, reached = step_and_reached(comparison, tested(comparison, study), other)
    return (
        f"**The same update for less work**: 64 rows a step cut by positions take {step:.2f} of the seconds of plain "
        f"accumulation, and its loss is reached in {reached.replace(',', ' of them,', 1)} "
        "([page](docs/evidence/same_update.md))."
    )


# ---- plots -----------------------------------------------------------------------------------------------------------

INK, LINE = "#808080", "#3d7edb"  # both are read on white and on dark pages


def forest(path: Path, rows: Iterable[tuple[str, float, float, float]], axis: str) -> None:
    """A point and its 95 % interval for each baseline, from the top; 0 is no difference."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = list(rows)[::-1]
    style = {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    colors = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with pyplot.rc_context({**style, **colors}):
        figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.32 * len(found)))
        axes.axvline(0, color=INK, lw=0.8, ls="--")
        for place, (_, mean, low, high) in enumerate(found):
            axes.plot([low, high], [place, place], color=LINE, lw=2)
            axes.plot([mean], [place], "o", color=LINE, ms=6)
        axes.set_yticks(range(len(found)), [name for name, *_ in found])
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_xlabel(axis)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def plot_of(comparison: Comparison, study: Study, folder: Path) -> str:
    """Draws the study's tests, and returns the picture's name; empty where nothing can be tested."""
    metric, arm, named = metric_of(comparison, study), tested(comparison, study), labels(comparison)
    rows = [
        (named[test.baseline].replace("`", ""), test.difference, test.low, test.high)
        for test in paired(comparison, arm, metric)
        if test.difference is not None and test.low is not None and test.high is not None
    ]
    if not rows:
        return ""
    better = "above" if metric.task else "below"
    forest(folder / f"{study.name}.svg", rows, f"{arm.method} less each: {metric.title}; {better} 0 is better")
    return f"{study.name}.svg"


# ---- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a row of the index says."""

    text: str
    date: str = "-"
    seeds: str = "-"


def grouped(found: Mapping[str, str]) -> str:
    """By names, verdicts: "**better** than a and b; no difference shown to c"."""
    parts = []
    for verdict, told in (("better", "**better** than"), ("worse", "**worse** than"), ("", "no difference shown to")):
        names = [name for name, own in found.items() if own == (verdict or "no difference shown")]
        parts += [f"{told} {', '.join(names)}"] if names else []
    reasons = dict.fromkeys(own for own in found.values() if own.startswith("no test"))
    untested = [f"{', '.join(name for name, own in found.items() if own == reason)}: {reason}" for reason in reasons]
    return "; ".join(parts + untested)


def verdict(studies: Sequence[Study]) -> Verdict:
    """Of the studies that have lines."""
    texts, dates, seeds = [], [], []
    for study in studies:
        comparison = read(study)
        if comparison is None:
            continue
        named, metric, arm = labels(comparison), metric_of(comparison, study), tested(comparison, study)
        text = f"{study.told}`{arm.method}`, by the {metric.title}: "
        text += grouped({named[test.baseline]: test.verdict for test in paired(comparison, arm, metric)})
        other = comparison.plan.arm(study.to_loss_of) if study.to_loss_of else None
        found = geometric(shares_of_seconds(comparison, arm.name, other.name)) if other else None
        if other and found:
            text = f"`{arm.method}`: {ratio(found)} of the seconds of {label(other)} to the same loss; {text}"
        texts.append(text)
        dates.append(max(run.time or "" for run in comparison.runs)[:10])
        seeds.append(str(len({run.seed for run in comparison.runs})))
    if not texts:
        return Verdict("not run yet")
    return Verdict(". ".join(texts), max(dates), ", ".join(seeds))


def of_learnt(folder: Path) -> Verdict:
    """Draws exact answers less plain's, and says what the tests show."""
    import learnt

    found, _, seeds = learnt.runs_of("reasoning")
    apart = learnt.apart_from_plain(found, seeds, "exact")
    adjusted = learnt.adjusted(apart)
    rows, shown = [], dict[str, list[str]]()
    for arm, each in apart.items():
        own = estimate(each)
        if own is None or own.low is None or own.high is None:
            raise SystemExit(f"{learnt.OUTPUT}: expected two seeds or more of every arm.")
        rows.append((arm, 100 * own.mean, 100 * own.low, 100 * own.high))
        told = "**better** than" if own.mean > 0 else "**worse** than"
        told = "not shown to differ from" if adjusted[arm] >= 0.05 else told
        shown.setdefault(told, []).append(f"`{arm}`")
    forest(folder / "learnt-rows.svg", rows, "exact answers less plain's, points; above 0 is better")
    text = "; ".join(f"{', '.join(names)} {told} plain" for told, names in shown.items())
    last = max(each[seed]["date"] for each in found.values() for seed in seeds)
    return Verdict(f"exact answers after {learnt.SHARE:g} of plain's steps: {text}", last, str(len(seeds)))


def write_index(found: Mapping[str, Verdict]) -> None:
    """The table of claims."""
    rows = [
        [f"({claim.letter}) [{claim.text}]({claim.page}.md)", own.text, own.date, own.seeds]
        for claim in CLAIMS
        for own in (found[claim.letter],)
    ]
    write_between(EVIDENCE / "index.md", "claims", table(["claim", "what was found", "date", "seeds"], rows))


def write_pages(plots: Path) -> None:
    """Every part of every page, and the index; `plots`: where pictures go."""
    pages = {**{claim.page: claim.studies for claim in CLAIMS}, **BESIDE}
    for name, studies in pages.items():
        for study in studies:
            comparison = read(study)
            plot = "" if comparison is None or name in BESIDE else plot_of(comparison, study, plots)
            if study.written:
                nothing = NOT_RUN.format(study.folder.name)
                text = nothing if comparison is None else text_of(comparison, study, plot)
                write_between(EVIDENCE / f"{name}.md", study.name, text)
    write_between(ROOT / "README.md", "same update", in_readme(CLAIMS[0].studies[0]))
    own: dict[str, Callable[[], Verdict]] = {"c": lambda: of_learnt(plots)}
    write_index({c.letter: own[c.letter]() if c.letter in own else verdict(c.studies) for c in CLAIMS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what")
    taken = kinds.add_parser("take", help="copy a comparison's lines first")
    studies = {study.name: study for claim in CLAIMS for study in claim.studies}
    studies |= {study.name: study for each in BESIDE.values() for study in each}
    taken.add_argument("study", choices=list(studies))
    taken.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--plots", type=Path, default=EVIDENCE, help="where pictures go")
    args = parser.parse_args()
    if args.what == "take":
        if not (args.folder / "plan.json").is_file():
            raise SystemExit(f"A comparison's folder was expected, with plan.json. Found {args.folder}.")
        take(args.folder, studies[args.study].folder)
    write_pages(args.plots)


if __name__ == "__main__":
    main()
