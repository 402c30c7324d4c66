"""What a comparison found of a run's selection against plain training, in sentences for the run's report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from corebatch.bench.runs import format as words
from corebatch.bench.runs.comparison import Comparison, PlannedArm
from corebatch.bench.runs.statistics import losses, metrics, paired_tests, time_to_loss
from corebatch.errors import ConfigError
from corebatch.rendering.formats import clean, listing
from corebatch.report.summary import Summary

NOT_COMPARED = ("seed", "track_error", "loss_by_source", "noise_scale")
"""Keys of the coreset block that choose nothing, or that differ from run to run."""
INDEPENDENT = ("random", "importance")
"""Selectors whose rows tell the noise as they are: with others a number of `noise_scale` has steps of random rows."""


def against_plain(comparison: Comparison, summary: Summary) -> tuple[str, ...]:
    """A sentence for each plain baseline: the difference in the held-out loss with its interval over seeds, the verdict
    by a paired test, which tasks differ, and when the baseline's last loss was reached.

    Raises:
        ConfigError: the comparison is of another model, other settings or other batches than the run, or has no runs
            yet that could be set against plain training.
        MissingExtraError: scipy is not installed.
    """
    arm = comparison.plan.reference_arm
    plain = [other for other in comparison.plan.baselines if other.plain and other is not arm]
    where = f"--comparison: {comparison.folder}"
    if arm is None or not plain:
        raise ConfigError(f"{where} should have an arm of the config's selection and one of plain training.")
    if differ := _differences(comparison, arm, summary):
        raise ConfigError(f"{where} is not of this run's selection ({'; '.join(differ)}).")
    found = [sentence for other in plain if (sentence := _sentence(comparison, arm, other))]
    if not found:
        raise ConfigError(f"{where} has no runs yet of its selection and of plain training with a seed in common.")
    return tuple(found)


def _differences(comparison: Comparison, arm: PlannedArm, summary: Summary) -> list[str]:
    """In what the run is not one of the arm, as far as both tell."""
    ours, theirs = _plain(summary.coreset), _plain(arm.coreset)
    pairs = {f"coreset.{key}": (ours[key], theirs[key]) for key in ours if key in theirs and key not in NOT_COMPARED}
    pairs["coreset.noise_scale"] = (_random_every(ours), _random_every(theirs))
    pairs["model_name_or_path"] = (summary.model, comparison.plan.settings.get("model_name_or_path") or summary.model)
    if ours.get("budget", "constant") == "constant":
        pairs["rows drawn at a step"] = (summary.pool_size[1], arm.rows_drawn_per_step)
        pairs["rows trained at a step"] = (summary.chosen_size[1], arm.rows_trained_per_step)
    return [f"{key}: {clean(f'{a!r} here, {b!r} there')}" for key, (a, b) in pairs.items() if a != b]


def _random_every(settings: Mapping[str, Any]) -> int | None:
    """At every so-many-th step rows are random; None: at none."""
    every, chosen = settings.get("noise_scale"), settings.get("pool_factor", 1) > 1
    apart = settings.get("selector") in INDEPENDENT or settings.get("track_error")
    return every if chosen and not apart and isinstance(every, int) and not isinstance(every, bool) else None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return found


def _sentence(comparison: Comparison, arm: PlannedArm, other: PlannedArm) -> str:
    """Empty where no seed has both."""
    loss = losses(comparison)[0]
    test, *tasks = (
        next(test for test in paired_tests(comparison, metric, arm.name) if test.baseline == other.name)
        for metric in (loss, *(metric for metric in metrics(comparison) if metric.task))
    )
    if test.difference is None:
        return ""
    seeds = "one seed" if test.n == 1 else f"{test.n} seeds"
    said = f"{clean(other.title)}, at {words.BUDGETS.get(other.budget, other.budget)}, {seeds}: held-out loss with the "
    said += f"selection less without: {words.difference(loss, test.difference)} nats per token by the {loss.title}"
    said += f" ({words.interval(test)})" if test.low is not None else ""
    said += f", {test.verdict}"
    for verdict in ("better", "worse"):
        if names := [clean(each.metric.name) for each in tasks if each.verdict == verdict]:
            said += f"; {verdict} on {listing(names)}"
    reach = time_to_loss(comparison, arm.name, other.name, loss.name, "seconds")
    if reach is not None:
        said += "; its last loss was not reached" if reach.share is None else ""
        said += "" if reach.share is None else f"; its last loss was reached in {100 * reach.share:.0f} % of its time"
    return f"{said}."
