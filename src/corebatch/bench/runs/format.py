"""Numbers of a comparison as a reader wants them, and its outcome in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corebatch.bench.runs.comparison import Comparison
from corebatch.bench.runs.statistics import Estimate, Metric, PairedTest, Reach, metrics, paired_tests
from corebatch.rendering.formats import NOTHING, clean, compact, count, listing

BUDGETS = {"steps": "equal steps", "flops": "equal FLOPs", "wall_clock": "equal wall-clock"}
AXIS_NAMES = {"steps": "optimizer steps", "tokens": "tokens trained", "flops": "FLOPs", "seconds": "seconds"}


def _number(metric: Metric, number: float, sign: str = "") -> str:
    return f"{100 * number:{sign}.1f}" if metric.task else f"{number:{sign}.4f}"


def value(metric: Metric, number: float | None) -> str:
    """A loss with four places, an accuracy in per cent."""
    return NOTHING if number is None else _number(metric, number) + " %" * metric.task


def difference(metric: Metric, number: float | None) -> str:
    """With its sign; accuracies in points of a hundred."""
    return NOTHING if number is None else _number(metric, number, "+") + " points" * metric.task


def estimate(metric: Metric, found: Estimate | None) -> str:
    """3.0510 ± 0.0090: the mean, and half of its 95 % interval."""
    if found is None:
        return NOTHING
    if found.high is None:
        return f"{value(metric, found.mean)} (one seed)"
    return f"{_number(metric, found.mean)} ± {value(metric, found.high - found.mean)}"


def interval(test: PairedTest) -> str:
    """-0.0200 to +0.0100."""
    if test.low is None or test.high is None:
        return NOTHING
    return f"{_number(test.metric, test.low, '+')} to {_number(test.metric, test.high, '+')}"


def probability(p: float | None) -> str:
    """Three places, or that it is smaller."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def reach(found: Reach | None) -> str:
    """61 % (55 to 70; 5/5): of the mean curves, of single seeds, and in how many seeds it is reached."""
    if found is None:
        return NOTHING
    share = "not reached" if found.share is None else f"{100 * found.share:.0f} %"
    ends = "" if found.low is None or found.high is None else f"{100 * found.low:.0f} to {100 * found.high:.0f}; "
    return f"{share} ({ends}{found.reached}/{found.n})"


def small(number: float | None) -> str:
    """A learning rate or a beta, as it was written."""
    return NOTHING if number is None else f"{number:g}"


def seconds(number: float | None) -> str:
    return NOTHING if number is None else f"{number:,.1f}" if number < 1000 else f"{number:,.0f}"


def seeds(found: Iterable[int]) -> str:
    """1, 2, 3."""
    return ", ".join(str(seed) for seed in sorted(found))


def mean_count(found: Sequence[float | None], whole: bool = True) -> str:
    """The mean of what was counted; a tilde before it where runs differ."""
    known = [number for number in found if number is not None]
    if not known:
        return NOTHING
    mean = sum(known) / len(known)
    text = count(round(mean)) if whole else compact(mean)
    return text if len(set(known)) == 1 else f"~{text}"


_OF = {
    "claimed": "with the shares of the objective",
    "kept": "of those that are to be kept",
    "target": "of all others",
}


def by_shares(comparison: Comparison) -> str:
    """What the means with shares of their own are, as sentences after others."""
    shares = comparison.plan.shares
    said = [
        f" The {mean} mean is a mean of sources {what}: "
        + listing([f"{clean(name)} {100 * share:.3g} %" for name, share in shares[mean].items()], most=12)
        + "."
        for mean, what in _OF.items()
        if mean in shares
    ]
    return "".join(said)


def verdict(comparison: Comparison) -> tuple[str, str]:
    """What came out: whether the reference arm won against the strongest baseline at its own budget, by the mean that
    it is judged by; and by how much. Where nothing could be tested, how many arms there are, and nothing. Raises
    MissingExtraError: scipy is not installed."""
    plan, metric, ours = comparison.plan, metrics(comparison)[0], comparison.plan.reference_arm
    tests = [
        (test, arm)
        for test in paired_tests(comparison, metric)
        if test.difference is not None and (arm := plan.arm(test.baseline)) is not None
    ]
    if not tests or ours is None:
        nothing = "no result yet" if comparison.missing else "no baseline to test against"
        return f"{_many(len(plan.arms), 'arm')} over {_many(len(plan.seeds), 'seed')}: {nothing}", ""
    beside = [(test, arm) for test, arm in tests if arm.budget == ours.budget] or tests
    test, other = max(beside, key=lambda each: each[0].difference or 0.0)  # ours less theirs, of a loss
    name, against = clean(ours.name), clean(other.name)
    several = f", the strongest of {len(beside)} baselines," if len(beside) > 1 else ""
    said = {
        "better": f"{name} won against {against}{several}",
        "worse": f"{name} lost to {against}{several}",
        "no difference shown": f"No difference could be shown between {name} and {against}{several}",
    }.get(test.verdict, f"{name} against {against}{several}")
    said += f" by the {metric.title} at {BUDGETS.get(other.budget, other.budget)}"
    said += f": {test.verdict}" if test.verdict.startswith("no test") else ""
    ends = [] if test.low is None else [f"95 % interval {interval(test)}"]
    if test.p_holm is not None and test.family > 1:
        shown = probability(test.p_holm)
        ends.append(f"p {shown if shown.startswith('<') else f'= {shown}'} after Holm's correction")
    much = f"{name} less {against}: {difference(metric, test.difference)} nats a token "
    much += f"({', '.join([*ends, _many(test.n, 'seed')])})."
    rows = other.steps * other.rows_trained_per_step / (ours.steps * ours.rows_trained_per_step)
    much += f" {against} trained {rows:.2g} times as many rows." if rows > 1.05 and other.budget == "steps" else ""
    return f"{'So far: ' * bool(comparison.missing)}{said}", much


def headline(comparison: Comparison) -> list[str]:
    """How many runs count, and what the reference arm's tests say, one sentence for metrics that say the same."""
    plan, comparable = comparison.plan, len(comparison.comparable)
    left_out = len(comparison.runs) - comparable
    text = f"{_many(len(plan.arms), 'arm')}, {_many(len(plan.seeds), 'seed')}: {comparable:,} of "
    text += f"{_many(len(plan.arms) * len(plan.seeds), 'run')} {'is' if comparable == 1 else 'are'} comparable, "
    text += f"{left_out:,} left out with a reason, {len(comparison.missing):,} missing."
    texts, reference = [*filter(None, verdict(comparison)[1:]), text], plan.reference_arm
    if plan.metric and reference is not None:
        text = f"{clean(reference.name)} trains for {clean(reference.objective)}, and is judged by the {plan.metric}"
        texts.append(f"{text} mean; the other means stand beside it.")
    said: dict[str, list[str]] = {}
    for metric in metrics(comparison):
        what = f"accuracy on {clean(metric.name)}" if metric.task else f"loss by {metric.title}"
        said.setdefault(_outcome(paired_tests(comparison, metric)), []).append(what)
    if list(said) == [""]:
        return [*texts, "Nothing to test: the plan has no reference arm with a baseline beside it."]
    return [*texts, *(f"{_capital(listing(what, most=20))}: {outcome}." for outcome, what in said.items())]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_SAID = {
    "better": "better than",
    "worse": "worse than",
    "no difference shown": "no difference shown to",
    "no test": "no test against",
}


def _outcome(tests: Sequence[PairedTest]) -> str:
    """Which baselines the arm is better than, worse than, neither; empty without tests."""
    if not tests:
        return ""
    groups: dict[str, list[str]] = {}
    for test in tests:
        groups.setdefault(test.verdict.partition(":")[0], []).append(clean(test.baseline))
    parts = []
    for verdict, said in _SAID.items():
        names = groups.get(verdict, [])
        every = "the only baseline, " if len(tests) == 1 else f"each of the {len(tests)} baselines"
        if len(names) == len(tests):
            parts.append(f"{said} {every}{names[0] if len(tests) == 1 else ''}")
        elif names:
            parts.append(f"{said} {', '.join(names)}")
    return f"{clean(tests[0].arm)}: {'; '.join(parts)}"
