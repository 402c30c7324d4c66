"""The tables of a comparison as text, the same for terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corebatch.bench.runs import format as words
from corebatch.bench.runs.comparison import Comparison, Mark, PlannedArm, Run
from corebatch.bench.runs.statistics import LOSSES, PairedTest, estimate, metrics, paired_tests, time_to_loss, values
from corebatch.rendering.formats import NOTHING, clean, compact, count, shorten
from corebatch.rendering.sheet import Sheet
from corebatch.rendering.sheet import flat as flattened

MOST_SOURCES = 200
_MOST_TEXT = 300


def outcome(comparison: Comparison) -> Sheet:
    """The main table: what each arm was granted, spent and reached."""
    left, right = spent(comparison), losses(comparison)
    return _joined("Arms", left, right, f"{left.caption} {right.caption}")


def _joined(title: str, left: Sheet, right: Sheet, caption: str) -> Sheet:
    """Two sheets of the same arms beside each other."""
    rows = tuple((*a, *b[2:]) for a, b in zip(left.rows, right.rows, strict=True))
    return Sheet(title=title, header=(*left.header, *right.header[2:]), rows=rows, caption=caption)


SPENT = "Means over the comparable runs (~: they differ). Steps of an arm without runs are the plan's."
PREPARED = (
    " Preparation: seconds of scoring and of choosing an arm's rows, once for all seeds; they are part of its seconds "
    "and of its budget. Its FLOPs are those of training."
)
EDGE = " Edge: the best learning rate was the last of the grid on its side, so a better one may lie beyond."


def spent(comparison: Comparison) -> Sheet:
    """What each arm was trained on, at which cost and rates; means over its comparable runs, else the plan."""
    header = ("arm", "seeds", "steps", "rows drawn", "rows trained", "tokens trained", "FLOPs", "seconds")
    arms = comparison.plan.arms
    named, prepared = any(arm.objective for arm in arms), any(arm.subset is not None for arm in arms)

    def more(arm: PlannedArm) -> tuple[str, ...]:
        taken = NOTHING if arm.subset is None else words.seconds(arm.preparation_seconds)
        return (*[taken] * prepared, *[arm.objective] * named)

    return Sheet(
        title="Budgets and rates",
        header=(*header, "learning rate", "beta2", *["preparation"] * prepared, *["objective"] * named),
        rows=tuple((*_spent(comparison, arm), *more(arm)) for arm in arms),
        caption=SPENT + PREPARED * prepared + EDGE * any(arm.edge_of_grid for arm in arms),
    )


def _spent(comparison: Comparison, arm: PlannedArm) -> tuple[str, ...]:
    runs = list(comparison.of(arm.name).values())
    return (
        arm_name(comparison, arm),
        _seeds(comparison, arm),
        words.mean_count([run.steps for run in runs]) if runs else count(arm.steps),
        words.mean_count([run.rows_drawn for run in runs]),
        words.mean_count([run.rows_trained for run in runs]),
        words.mean_count([run.tokens_trained for run in runs]),
        words.mean_count([run.flops for run in runs], whole=False),
        words.seconds(sum(run.seconds or 0.0 for run in runs) / len(runs) if runs else None),
        words.small(arm.learning_rate) + (" (edge)" if arm.edge_of_grid else ""),
        words.small(arm.adam_beta2),
    )


def arm_name(comparison: Comparison, arm: PlannedArm) -> str:
    """The name, and whether it is the reference."""
    return clean(arm.name) + (" (reference)" if _role(comparison, arm) == "reference" else "")


def _role(comparison: Comparison, arm: PlannedArm) -> str:
    reference = comparison.plan.reference_arm
    if reference is not None and arm.name == reference.name:
        return "reference"
    return "baseline" if arm.baseline else ""


def _seeds(comparison: Comparison, arm: PlannedArm) -> str:
    found, planned = len(comparison.of(arm.name)), len(comparison.plan.seeds)
    return str(found) if found == planned else f"{found} of {planned}"


def losses(comparison: Comparison) -> Sheet:
    """Final held-out loss of each arm by each mean, and tasks, with 95 % intervals."""
    measured = metrics(comparison)
    rows = []
    for arm in comparison.plan.arms:
        found = [(m, estimate(list(values(comparison, arm.name, m).values()))) for m in measured]
        rows.append(
            (arm_name(comparison, arm), _seeds(comparison, arm), *(words.estimate(m, value) for m, value in found))
        )
    return Sheet(
        title="Final held-out loss (nats a token)" + (" and tasks" if comparison.tasks else ""),
        header=("arm", "seeds", *(clean(metric.title) for metric in measured)),
        rows=tuple(rows),
        caption="Means over seeds, and after ± half of their 95 % t interval. Runs that are not comparable "
        "are left out. Seeds share what their data order "
        "does to all arms, so intervals may overlap where a paired test finds a difference."
        + words.by_shares(comparison),
    )


def tests(comparison: Comparison) -> list[Sheet]:
    """A table for each metric: the reference arm against each baseline; none without a reference or baselines."""
    made = []
    for metric in metrics(comparison):
        found = paired_tests(comparison, metric)
        if not found:
            continue
        unit = "accuracy" if metric.task else "nats a token"
        made.append(
            Sheet(
                title=f"{clean(found[0].arm)} against each baseline: {clean(metric.title)}"
                + ", which its objective is about" * (metric.name == comparison.plan.metric),
                header=("baseline", "seeds", f"difference, {unit}", "95 % interval", "p", "p after Holm", "verdict"),
                rows=tuple(_test_row(test) for test in found),
                caption=f"Reference minus baseline over common seeds; {'above' if metric.task else 'below'} 0 is "
                "better. Paired two-sided t-tests; Holm's correction over "
                f"{found[0].family} baseline{'' if found[0].family == 1 else 's'}; the interval is not corrected. "
                "A verdict needs p after Holm below 0.05.",
            )
        )
    return made


def _test_row(test: PairedTest) -> tuple[str, ...]:
    return (
        clean(test.baseline),
        str(test.n),
        words.difference(test.metric, test.difference),
        words.interval(test),
        words.probability(test.p),
        words.probability(test.p_holm),
        test.verdict,
    )


def reaches(comparison: Comparison) -> list[Sheet]:
    """A table for each mean: what the reference arm spends to reach each baseline's last loss."""
    arm = comparison.plan.reference_arm
    others = [baseline for baseline in comparison.plan.baselines if arm is not None and baseline.name != arm.name]
    if arm is None or not others:
        return []
    return [
        Sheet(
            title=f"What {clean(arm.name)} spends to reach each baseline's last loss: {mean} mean",
            header=("baseline", *(words.AXIS_NAMES[axis] for axis in ("seconds", "steps", "tokens", "flops"))),
            rows=tuple(
                (
                    clean(other.name),
                    *(
                        words.reach(time_to_loss(comparison, arm.name, other.name, mean, axis))
                        for axis in ("seconds", "steps", "tokens", "flops")
                    ),
                )
                for other in others
            ),
            caption=REACH,
        )
        for mean in comparison.plan.means
    ]


REACH = (
    "As a share of what the baseline spends; below 100 % is cheaper. First by the mean curves over common seeds, then "
    "the least and the greatest of single seeds that reach it, and how many of them do. Curves are measured on a part "
    "of the held-out rows and read by linear interpolation. Learning rates are still high in the middle of a run, so a "
    "run that was planned shorter may need less."
)


def reach_of_all(comparison: Comparison) -> Sheet | None:
    """Each arm's seconds to each baseline's last loss, by the first mean."""
    others, mean = comparison.plan.baselines, comparison.plan.means[0]
    if not others or len(comparison.plan.arms) < 2:
        return None
    rows = []
    for arm in comparison.plan.arms:
        cells = [
            NOTHING if arm.name == other.name else _reach(comparison, arm.name, other.name, mean) for other in others
        ]
        rows.append((arm_name(comparison, arm), *cells))
    return Sheet(
        title=f"Seconds of each arm to each baseline's last loss ({mean} mean, share of the baseline's seconds)",
        header=("arm", *(clean(other.name) for other in others)),
        rows=tuple(rows),
        caption="Mean curves over common seeds. Not reached: the arm's mean curve never fell so far.",
    )


def _reach(comparison: Comparison, arm: str, baseline: str, mean: str) -> str:
    found = time_to_loss(comparison, arm, baseline, mean, "seconds")
    if found is None:
        return NOTHING
    return "not reached" if found.share is None else f"{100 * found.share:.0f} %"


def sources(comparison: Comparison) -> Sheet | None:
    """Final held-out loss of each source in each arm that has runs; None without any."""
    arms = [arm for arm in comparison.plan.arms if comparison.of(arm.name)]
    names = comparison.sources
    if not names or not arms:
        return None
    rows = []
    for name in names[:MOST_SOURCES]:
        found = [estimate(list(source_values(comparison, arm.name, name).values())) for arm in arms]
        rows.append((shorten(name, 60), *(words.value(LOSSES[0], None if e is None else e.mean) for e in found)))
    left_out = len(names) - len(rows)
    return Sheet(
        title="Final held-out loss by source (nats a token, mean over seeds)",
        header=("source", *(clean(arm.name) for arm in arms)),
        rows=tuple(rows),
        caption=f"{left_out:,} more sources are not shown." if left_out else "",
    )


def source_values(comparison: Comparison, arm: str, source: str) -> dict[int, float]:
    """By seed, the final held-out loss on a source."""
    found = {seed: run.final.sources.get(source) for seed, run in comparison.of(arm).items() if run.final}
    return {seed: value for seed, value in found.items() if value is not None}


def marks(comparison: Comparison) -> Sheet | None:
    """A row for each run that is left out, with its reasons and what it showed, and one for each note of an arm with
    all its seeds; None where there is nothing to say."""
    runs = {(run.arm, run.seed): run for run in comparison.runs}
    grouped: dict[tuple[str, str, str, int | None], list[Mark]] = {}
    for mark in comparison.marks:
        if mark.excludes and (mark.arm, mark.seed) in runs:
            grouped.setdefault((mark.arm, "left out", "", mark.seed), []).append(mark)
        else:
            effect = "missing" if mark.kind == "missing" else "noted"
            grouped.setdefault((mark.arm, effect, mark.text, None), []).append(mark)
    rows = []
    for (arm, effect, text, seed), found in grouped.items():
        seeds = words.seeds({mark.seed for mark in found})
        reason = text or "; ".join(mark.text for mark in found)
        shown = _shown(comparison, None if seed is None else runs.get((arm, seed)))
        rows.append((clean(arm), seeds, effect, shorten(reason, _MOST_TEXT), *shown))
    return (
        Sheet(
            title="Marked runs",
            header=("arm", "seed", "effect", "reason", *(f"{mean} mean" for mean in comparison.plan.means)),
            rows=tuple(rows),
            caption="Left out: not comparable, and in no mean, test or curve; its losses are shown here. Noted: "
            "counted, but to be read with care.",
        )
        if rows
        else None
    )


def _shown(comparison: Comparison, run: Run | None) -> tuple[str, ...]:
    losses = run.final.losses if run is not None and run.final is not None else {}
    return tuple(words.value(LOSSES[0], losses.get(mean)) for mean in comparison.plan.means)


def timing(comparison: Comparison) -> Sheet:
    """What a step of each arm holds and costs, as the plan states it."""
    header = ("arm", "role", "method", "budget", "rows drawn a step", "rows trained a step", "steps")
    return Sheet(
        title="The plan of each arm",
        header=(*header, "seconds a step", "FLOPs a step"),
        rows=tuple(
            (
                clean(arm.name),
                _role(comparison, arm),
                clean(arm.title),
                words.BUDGETS.get(arm.budget, clean(arm.budget)),
                count(arm.rows_drawn_per_step),
                count(arm.rows_trained_per_step),
                count(arm.steps),
                _per_step([f"{number:.4g}" for number in arm.seconds_per_step]),
                _per_step([compact(number) for number in arm.flops_per_step]),
            )
            for arm in comparison.plan.arms
        ),
        caption="Steps were fixed before any run, from ratios measured side by side. Two numbers a step: in the first "
        "epoch, and in later ones.",
    )


def _per_step(numbers: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(numbers)) or NOTHING


def budgets(comparison: Comparison) -> list[tuple[str, str]]:
    """Names and values of what the question was."""
    plan = comparison.plan
    arm = plan.reference_arm
    return [
        ("Reference", "none among the arms" if arm is None else clean(arm.name)),
        ("Seeds", words.seeds(plan.seeds)),
        ("Budget of equal steps", NOTHING if arm is None else f"{count(arm.steps)} steps"),
        ("Budget of equal wall-clock", NOTHING if plan.seconds is None else f"{words.seconds(plan.seconds)} seconds"),
        ("Budget of equal FLOPs", NOTHING if plan.flops is None else f"{compact(plan.flops)}FLOPs"),
    ]


def flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, nested objects flattened with dots, long ones cut."""
    return [(shorten(name, _MOST_TEXT), shorten(value, _MOST_TEXT)) for name, value in flattened(values)]


def provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """Commit, hardware and versions, of the plan or else of the first line."""
    plan, first = comparison.plan, comparison.runs[0] if comparison.runs else None
    hardware = plan.hardware or (first.hardware if first else {})
    versions = plan.versions or (first.versions if first else {})
    times = sorted(run.time for run in comparison.runs if run.time)
    return [
        ("commit", clean(plan.commit or (first.commit if first else None) or "unknown")),
        *flat({"hardware": hardware, "versions": versions}),
        ("first run", clean(times[0]) if times else NOTHING),
        ("last run", clean(times[-1]) if times else NOTHING),
    ]
