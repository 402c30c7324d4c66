"""`corebatch advise`: runs every measurement within its share of the minutes, shows and writes what was found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from corebatch.bench.advise import costs, gradients, learnt, padding, scoring, sources, spread
from corebatch.bench.advise.advice import (
    Advice,
    advice_folder,
    check_advice_folder,
    recommended_values,
    write_advice,
    write_recommended,
)
from corebatch.bench.advise.finding import MORE_MINUTES, Finding
from corebatch.bench.advise.probe import Probe, make_probe
from corebatch.config.settings import settings_from
from corebatch.errors import ConfigError
from corebatch.model.digest import weights_digest
from corebatch.model.modes import modes_kept
from corebatch.record.data_identity import content
from corebatch.record.model_identity import describe_model
from corebatch.record.provenance import provenance
from corebatch.rendering.sheet import Sheet, rich_table
from corebatch.seeds import random_states
from corebatch.text import say

MOST_SHOWN = 60
"""Characters of a value in the table."""


@dataclass(frozen=True)
class AdvicePart:
    """A measurement.

    Attributes:
        measure: never raises for what it cannot measure: such a Finding says why.
        weight: its share of the time that is left, over the weights of all that are still to come.
    """

    measure: Callable[[Probe], list[Finding]]
    weight: float = 1.0


PARTS: dict[str, AdvicePart] = {
    "costs": AdvicePart(costs.measure, 3.0),
    "padding": AdvicePart(padding.measure, 1.0),
    "scoring": AdvicePart(scoring.measure, 1.0),
    "sources": AdvicePart(sources.measure, 3.0),  # the gradients of rows, for those below as well
    "gradients": AdvicePart(gradients.measure),
    "choice of rows": AdvicePart(spread.measure, 2.0),
    "learnt rows": AdvicePart(learnt.measure),
}
"""By name, in the order in which they run."""


def advise(
    values: Mapping[str, Any],
    where: str,
    *,
    minutes: float,
    checkpoints: Path | None,
    output: Path | None,
    console: Console,
    parts: Mapping[str, AdvicePart] = PARTS,
) -> Path:
    """Measures what limits the run of a config, and returns the folder with advice.json and recommended.yaml.

    Args:
        values: the keys of the config.
        where: the config's name, for errors.
        minutes: for all measurements, data and model read included.
        checkpoints: of a run of the config, or None.
        output: the folder; None: the config's output_dir with "-advice" behind it.

    Raises:
        ConfigError: minutes that are not above 0; several processes; a folder that cannot be written or has advice;
            whatever `train` would refuse of settings, model or data.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes should be above 0. Found {minutes}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("advise measures in one process. Found several: start it without a launcher.")
    began = time.monotonic()
    settings = settings_from(dict(values), where)
    folder = output if output is not None else advice_folder(settings.training["output_dir"])
    check_advice_folder(folder, overwrite=settings.overwrite)
    probe = make_probe(settings, seconds=60 * minutes, checkpoints=checkpoints)
    findings, seconds = measure_all(probe, parts, lambda text: say(console, text))
    made, taken, left_out = recommended_values(values, findings)
    closing = sentence(findings, taken)
    about = {
        "minutes": minutes,
        "seconds": {**seconds, "all": round(time.monotonic() - began, 1)},
        "closing": closing,
        "recommended": [finding.lever for finding in taken],
        "left_out": left_out,
        "model": {**describe_model(probe.model), "digest": weights_digest(probe.model.named_parameters())},
        "data": {"rows": len(probe.mixture.dataset), **content(probe.mixture.dataset)},
        **provenance(),
    }
    console.print(advice_table(findings, taken))
    for text in left_out:
        say(console, f"Not set in the recommended config: {text}", "yellow")
    say(console, f"\n{closing}")
    paths = [  # last: what was measured has been shown even where a disk is full
        write_advice(Advice(config=values, findings=findings, about=about), folder),
        write_recommended(made, taken, folder),
    ]
    say(console, f"In {paths[0]} and {paths[1]}")
    return folder


def measure_all(
    probe: Probe, parts: Mapping[str, AdvicePart], tell: Callable[[str], None] = lambda text: None
) -> tuple[list[Finding], dict[str, float]]:
    """Runs the measurements until the probe's deadline: what they found, and the seconds that each took.

    Time that is left in the end goes to those that had too little: once more by shares, then all of it to each in
    turn.
    """
    end, found, seconds = probe.deadline, dict[str, list[Finding]](), dict[str, float]()
    tried, names = dict[str, tuple[float, frozenset[str]]](), list(parts)
    for alone in (False, False, True):
        for number, name in enumerate(names):
            began, weights = time.monotonic(), [parts[each].weight for each in names[number:]]
            share = (end - began) * (1.0 if alone else weights[0] / sum(weights))
            probe.forget_hurried()
            known, (most, before) = frozenset(probe.known), tried.get(name, (0.0, None))
            if share <= (most if known == before else 0.0):  # no more time than before, and nothing new to go by
                found.setdefault(name, [Finding(lever=name, unmeasured=f"no time was left: {MORE_MINUTES}")])
                continue
            tried[name], probe.deadline = (share, known), began + share
            made = _measured(probe, name, parts[name])
            if name not in found or _hurried(made) < _hurried(found[name]):
                found[name] = made
            took = time.monotonic() - began
            seconds[name] = round(seconds.get(name, 0.0) + took, 1)
            tell(f"{name}: {took:.0f} s")
        names = [name for name in names if _hurried(found[name])]
    probe.deadline = end
    return [finding for name in parts for finding in found[name]], seconds


def _measured(probe: Probe, name: str, part: AdvicePart) -> list[Finding]:
    """What a part finds; what another package raises in it is told in its place."""
    try:
        with modes_kept(probe.model), random_states():
            return part.measure(probe)
    except Exception as error:  # of somebody's model, or of a package: one line of advice is not worth the others
        return [Finding(lever=name, unmeasured=f"{type(error).__name__}: {error}")]
    finally:
        probe.model.zero_grad(set_to_none=True)


def _hurried(findings: Sequence[Finding]) -> int:
    return sum(finding.hurried for finding in findings)


def advice_table(findings: Sequence[Finding], taken: Sequence[Finding]) -> Table:
    """A row for each finding: lever, factor with its interval, why, and the key to set; a star where it is set."""
    sheet = Sheet(
        title="What limits this run",
        header=("", "lever", "factor", "of", "set", "why"),
        rows=tuple(
            (
                "*" if finding in taken else "",
                finding.lever,
                _factor(finding),
                finding.of if finding.factor is not None else "",
                ", ".join(f"{key}: {_short(value)}" for key, value in finding.arm.items()),
                finding.why if finding.unmeasured is None else f"not measured: {finding.unmeasured}",
            )
            for finding in findings
        ),
        caption="* is set in recommended.yaml",
    )
    return rich_table(sheet, sheet.header, unbroken=("", "factor"), header_style="bold")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _factor(finding: Finding) -> str:
    if finding.factor is None:
        return "-"
    if finding.low is None or finding.high is None:
        return f"{finding.factor:.2f}"
    return f"{finding.factor:.2f} ({finding.low:.2f} to {finding.high:.2f})"


def sentence(findings: Sequence[Finding], taken: Sequence[Finding]) -> str:
    """What to do, in plain words: whether the gradient's noise binds, and the strongest lever."""
    missing = [finding.lever for finding in findings if finding.unmeasured is not None]
    told = [str(finding.numbers["verdict"]) for finding in findings if "verdict" in finding.numbers]
    timed = [finding for finding in taken if finding.factor is not None]
    if timed:
        best = min(timed, key=lambda finding: finding.factor or 1.0)
        told.append(f"The strongest lever is {best.lever}: {_factor(best)} of the {best.of}.")
    elif taken:
        told.append(f"Recommended: {', '.join(finding.lever for finding in taken)}.")
    elif missing != [finding.lever for finding in findings] or not missing:
        told.append("Nothing that was measured is worth a change: train with the config as it is.")
    if missing:
        told.append(f"{len(missing)} of {len(findings)} lines could not be measured: {', '.join(missing)}.")
    return " ".join(told)
