"""How many seeds a comparison needs: what its paired t-tests will find. Needs scipy.

A pair is the reference and a baseline with the same seed. Pairs differ by a normal amount with the standard deviation
`sd`, the test is two-sided, and Holm's correction is taken at its strictest: 5 % over the number of baselines. Power by
the noncentral t distribution (Cohen, Statistical power analysis, 1988, chapter 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from corebatch.bench.runs.comparison import MEANS, Comparison, ComparisonPlan
from corebatch.bench.runs.statistics import LEVEL, Metric, distributions, values
from corebatch.rendering.formats import NOTHING, clean, percent
from corebatch.rendering.sheet import Sheet

POWER = 0.8
MOST_SEEDS = 1000


def power(effect: float, sd: float, seeds: int, alpha: float) -> float:
    """The probability that a two-sided paired t-test at `alpha` over so many seeds shows the effect."""
    of = distributions()
    freedom, shift = seeds - 1, effect / sd * math.sqrt(seeds)
    edge = of.t.ppf(1 - alpha / 2, freedom)
    upper, lower = float(of.nct.sf(edge, freedom, shift)), float(of.nct.cdf(-edge, freedom, shift))
    return upper + (0.0 if math.isnan(lower) else lower)  # scipy has NaN where nothing is left of the other tail


def detectable(sd: float, seeds: int, alpha: float) -> float:
    """The smallest effect that is shown with probability `POWER`."""
    from scipy.optimize import brentq

    if sd == 0:
        return 0.0
    highest = 1.0
    while power(highest, 1.0, seeds, alpha) < POWER:
        highest *= 2
    return sd * float(brentq(lambda effect: power(effect, 1.0, seeds, alpha) - POWER, 0.0, highest, xtol=1e-6))


def seeds_for(effect: float, sd: float, alpha: float) -> int | None:
    """The fewest seeds that show the effect with probability `POWER`; None for more than `MOST_SEEDS`."""
    low, high = 1, 2
    if sd == 0:
        return high
    while power(effect, sd, high, alpha) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sd, middle, alpha) >= POWER else (middle, high)
    return high


def interval_of_sd(sd: float, freedom: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation by chi-square; with one degree of freedom it spans a factor of 71."""
    of, tail = distributions().chi2, (1 - LEVEL) / 2
    return tuple(sd * math.sqrt(freedom / of.ppf(1 - p, freedom)) for p in (tail, 1 - tail))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadOfPairs:
    """How much pairs differ from seed to seed, by one mean.

    Attributes:
        sd: root of the mean variance over the baselines; they share the reference's runs, so that
        freedom: is that of one of them, seeds - 1.
        rows: the share of the variance that the held-out rows make, None where parts of them were not measured: with
            twice the rows it is half. The rest is of training, and only seeds lower it.
    """

    sd: float
    freedom: int
    rows: float | None = None


def spread_of(ours: Mapping[int, float], theirs: Sequence[Mapping[int, float]]) -> tuple[float, int] | None:
    """sd and freedom of the differences by seed of one arm to several; None where none has two seeds in common."""
    variances, counts = [], []
    for other in theirs:
        apart = [ours[seed] - other[seed] for seed in ours.keys() & other.keys()]
        if len(apart) > 1:
            mean = fmean(apart)
            variances.append(math.fsum((each - mean) ** 2 for each in apart) / (len(apart) - 1))
            counts.append(len(apart))
    return (math.sqrt(fmean(variances)), min(counts) - 1) if variances else None


def of_comparison(comparison: Comparison, names: Sequence[str] | None = None) -> dict[str, SpreadOfPairs]:
    """By mean, of the reference against the arms of these names, or against all others where none of them is there."""
    first = comparison.plan.reference_arm
    if first is None:
        return {}
    there = [arm.name for arm in comparison.plan.arms if arm is not first and comparison.of(arm.name)]
    chosen = [name for name in there if names is None or name in names] or there
    found = {}
    for mean in MEANS:
        own = [values(comparison, name, Metric(mean)) for name in (first.name, *chosen)]
        if (spread := spread_of(own[0], own[1:])) is not None:
            found[mean] = SpreadOfPairs(sd=spread[0], freedom=spread[1])
    return found


def of_pilots(lines: Sequence[Mapping[str, Any]], reference: str, baselines: Sequence[str]) -> dict[str, SpreadOfPairs]:
    """By mean, out of pilots' lines: `arm`, `seed`, `final` and `parts`, the losses on parts of the held-out rows."""
    by = {(line["arm"], line["seed"]): line for line in lines}
    seeds = sorted({line["seed"] for line in lines})
    found = {}
    for mean in MEANS:
        own = [{seed: by[arm, seed]["final"][mean] for seed in seeds} for arm in (reference, *baselines)]
        if (spread := spread_of(own[0], own[1:])) is None:
            continue
        noise = fmean(
            _rows_variance(
                [[a[mean] - b[mean] for a, b in zip(by[reference, seed]["parts"], by[arm, seed]["parts"], strict=True)]
                 for seed in seeds]
            )
            for arm in baselines
        )  # fmt: skip
        share = None if spread[0] == 0 or math.isnan(noise) else min(1.0, noise / spread[0] ** 2)
        found[mean] = SpreadOfPairs(sd=spread[0], freedom=spread[1], rows=share)
    return found


def _rows_variance(differences: Sequence[Sequence[float]]) -> float:
    """What held-out rows add to the variance over seeds of a mean over all parts [seeds, parts]: the interaction of
    seeds and parts in a two-way analysis of variance. What a part adds for every seed alike is in no paired test."""
    seeds, parts = len(differences), len(differences[0])
    if parts < 2:
        return math.nan
    rows = [fmean(each) for each in differences]
    columns = [fmean(each) for each in zip(*differences, strict=True)]
    whole = fmean(rows)
    squares = math.fsum(
        (differences[i][j] - rows[i] - columns[j] + whole) ** 2 for i in range(seeds) for j in range(parts)
    )
    return squares / ((seeds - 1) * (parts - 1)) / parts


def power_sheet(power: Mapping[str, Any], comparison: Comparison | None = None) -> Sheet | None:
    """What was computed beforehand, and beside it what came out, where a comparison has runs; None without power."""
    if not power:
        return None
    effect, seeds, means = power["effect"], power["seeds"], power["means"]
    now = {} if comparison is None else of_comparison(comparison, _baselines(comparison.plan))
    rows = []
    for mean in MEANS:
        if (own := means.get(mean)) is None:
            continue
        cells = (
            _span(own["sd"], ".4f"),
            _seeds(own["needed"]),
            _span(own["detectable"], ".4f"),
            NOTHING if own["rows"] is None else percent(own["rows"]),
        )
        came = f"{now[mean].sd:.4f}" if mean in now else NOTHING
        rows.append((f"{mean} mean", *cells, *([came] if comparison is not None else [])))
    header = (
        "mean",
        "sd of pairs",
        f"seeds for {effect:g}",
        f"smallest effect of {seeds} seeds",
        "sd by held-out rows",
    )
    freedom = min((own["freedom"] for own in means.values()), default=1)
    caption = (
        f"From {clean(power['of'])}; two-sided paired t-tests with power {POWER:g}, at {power['alpha']:.2g}: Holm's "
        f"correction over {power['baselines']} baselines at its strictest. In brackets what the 95 % interval of the "
        f"sd leaves open, which rests on {freedom} degree{'s' * (freedom != 1)} of freedom"
        f"{': two seeds tell the order of magnitude and little more' if freedom == 1 else ''}. By held-out rows: the "
        "share of the variance that twice the rows would halve; the rest is training's, and more seeds alone lower it."
    )
    return Sheet(
        title="Computed beforehand",
        header=(*header, *(["sd as it came out"] if comparison is not None else [])),
        rows=tuple(rows),
        caption=caption,
    )


def _baselines(plan: ComparisonPlan) -> list[str] | None:
    return [arm.name for arm in plan.baselines] or None


def _span(values: Sequence[float | None], form: str) -> str:
    """0.0120 (0.0054 to 0.3830)"""
    if any(value is None for value in values):
        return NOTHING
    first, low, high = (format(value, form) for value in values)
    return f"{first} ({low} to {high})"


def _seeds(needed: Sequence[int | None]) -> str:
    first, low, high = (f"over {MOST_SEEDS:,}" if each is None else str(each) for each in needed)
    return f"{first} ({low} to {high})"


def quick_words(comparison: Comparison) -> list[str]:
    """What a quick comparison can tell and what it cannot, in sentences; none for another."""
    plan = comparison.plan
    if not plan.quick:
        return []
    first, names = plan.reference_arm, _baselines(plan)
    of, seeds = plan.quick["steps"], len(plan.seeds)
    steps = f"{first.steps:,} of the config's {of:,} steps" if first is not None and first.steps < of else "all steps"
    tuned = "rates tuned" if plan.tuning.get("enabled") else "the config's one rate for all arms"
    told = [f"Quick, within {plan.quick['minutes']:g} minutes: {steps}, {seeds} seeds, {tuned}."]
    spread, alpha = of_comparison(comparison, names), (1 - LEVEL) / max(1, len(names or ()))
    found = {mean: detectable(own.sd, own.freedom + 1, alpha) for mean, own in spread.items()}
    if found:
        effects = ", ".join(f"{effect:.4f} by the {mean} mean" for mean, effect in found.items())
        told.append(
            "It can tell what a step of each arm costs beside the others, and differences at these steps of at least "
            f"{effects} (power {POWER:g}, by the spread that came out of {seeds} seeds)."
        )
    else:
        told.append("It can tell what a step of each arm costs beside the others; no two seeds are there yet.")
    left = "" if tuned.startswith("rates") else ", which arm has the better rate of its own"
    told.append(
        f"It cannot tell smaller differences (no difference shown is none of them excluded){left}, nor what longer "
        "runs, more rows or other seeds would show: corebatch compare without --quick does."
    )
    return told
