"""Which arms of a comparison pull a lever that `corebatch advise` found, and what it promised of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.advise.advice import ADVICE, Advice, advice_folder, read_advice
from corebatch.bench.advise.finding import Finding
from corebatch.bench.runs.arms import SET_BY_COMPARISON, Arm
from corebatch.bench.runs.comparison import Promise
from corebatch.bench.runs.from_config import Parts
from corebatch.config.settings import Settings, settings_from
from corebatch.config.values import with_keys
from corebatch.errors import ConfigError, CorebatchError
from corebatch.launch.subset_settings import SubsetSettings
from corebatch.launch.telling import OF_CHOICES, OF_STEPS
from corebatch.trainer import CoresetConfig

_ELSEWHERE = (
    *("eval_", "save_", "logging_", "report_to", "run_name", "load_best_", "metric_for_", "dataloader_", "disable_"),
)
"""Training arguments, by how they begin, that change no step."""


def promises_of(parts: Parts) -> tuple[tuple[Promise, ...], tuple[str, ...]]:
    """What was promised of the arms, and the levers with a factor that no arm pulls alone; both empty without advice.

    Advice is read from `compare.advice`, else from where `corebatch advise` writes it for this config.

    Raises:
        ConfigError: `compare.advice` is no advice, or is of another model or other data.
    """
    asked = parts.own.advice
    path = Path(asked) if asked is not None else advice_folder(parts.settings.training["output_dir"]) / ADVICE
    if asked is None and not path.is_file():
        return (), ()
    advice = read_advice(path)
    advised = settings_from(dict(advice.config), str(path))
    if differ := _other_question(advised, parts.settings):
        if asked is None:
            return (), ()
        raise ConfigError(f"compare.advice: {path} should be of the same {' and '.join(differ)}. Found another.")
    found, unmatched = list[Promise](), list[str]()
    base = _arm_of(_says(advised.coreset, advised.training, None), parts.arms)
    for finding in advice.findings:
        if finding.factor is None or not finding.arm:
            continue
        arm = None if base is None else _arm_of(_promised(advice, advised, finding), parts.arms)
        if arm is None or arm is base:
            unmatched.append(finding.lever)
            continue
        assert base is not None
        told = {key: getattr(finding, key) for key in ("lever", "of", "factor", "low", "high")}
        found.append(Promise(arm=arm.name, against=base.name, **told))
    return tuple(found), tuple(unmatched)


def _other_question(advised: Settings, compared: Settings) -> list[str]:
    """What the advice is of and the comparison is not: "model", "data"."""
    data = [dataclasses.replace(one.data, eval_datasets=(), eval_tasks=()) for one in (advised, compared)]
    same = {"model": (advised.model, advised.lora) == (compared.model, compared.lora), "data": data[0] == data[1]}
    return [name for name, holds in same.items() if not holds]


def _promised(advice: Advice, advised: Settings, finding: Finding) -> dict[str, Any] | None:
    """What an arm says that pulls the lever alone; None where no arm could."""
    values = with_keys(advice.config, finding.arm)
    try:
        made = settings_from(values, finding.lever)
        chosen = any(key.partition(".")[0] == "subset" for key in finding.arm)
        subset = SubsetSettings.from_dict(values["subset"]) if chosen else None
    except CorebatchError:  # of another version; the config that was recommended is checked when it is written
        return None
    return None if _other_question(made, advised) else _says(made.coreset, made.training, subset)


def _says(coreset: CoresetConfig, training: Mapping[str, Any], subset: SubsetSettings | None) -> dict[str, Any]:
    """What of settings makes a step and the rows that come, so that two that say the same are one arm."""
    idle: tuple[str, ...] = ("seed", "source_column", "loss", "loss_by_source")
    if coreset.pool_factor == 1:
        idle += OF_CHOICES if coreset.takes_part else OF_CHOICES + OF_STEPS
    chosen = {key: value for key, value in coreset.to_dict().items() if key not in idle}
    steps = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, **training}
    ours = {
        key: value for key, value in steps.items() if key not in SET_BY_COMPARISON and not key.startswith(_ELSEWHERE)
    }
    return {"coreset": chosen, "training": ours, "subset": None if subset is None else dataclasses.asdict(subset)}


def _arm_of(says: Mapping[str, Any] | None, arms: Sequence[Arm]) -> Arm | None:
    """The arm that says so, at equal wall-clock before others; None without one."""
    found = [
        arm
        for arm in arms
        if says
        == _says(
            arm.coreset,
            {
                **arm.training,
                "per_device_train_batch_size": arm.micro_batch,
                "gradient_accumulation_steps": arm.accumulation,
            },
            arm.method.subset,
        )
    ]
    return next((arm for arm in found if arm.budget == "wall_clock"), found[0] if found else None)
