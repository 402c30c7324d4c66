"""`advice.json` and `recommended.yaml`: what `corebatch advise` found, on the disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from corebatch.bench.advise.finding import TO_LOSS, Finding
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.errors import ConfigError
from corebatch.files import plain, write_json, write_text

SCHEMA = 1
ADVICE, RECOMMENDED = "advice.json", "recommended.yaml"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What was found for a config.

    Attributes:
        config: its keys and values.
        findings: in the order in which they were measured.
        about: what else the file says: model, data, hardware, versions, commit, time, seconds by measurement.
    """

    config: Mapping[str, Any]
    findings: Sequence[Finding]
    about: Mapping[str, Any]


def advice_folder(output_dir: str | Path) -> Path:
    """Where the advice for a config goes, beside its output_dir, which only a run writes into."""
    return Path(f"{str(output_dir).rstrip('/')}-advice")


def check_advice_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises ConfigError: it is a file, cannot be written, or has advice that is not to be overwritten."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"The advice should go into a folder. Found the file {there}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"The advice goes into {folder}. Found that {there} cannot be written.")
    found = [name for name in (ADVICE, RECOMMENDED) if (folder / name).exists()]
    if found and not overwrite:
        raise ConfigError(
            f"{folder} has {found[0]} already, and nothing is overwritten: a comparison may be measured against it. "
            "Choose another --output, or give --overwrite true."
        )


def write_advice(advice: Advice, folder: Path) -> Path:
    """Writes advice.json, whole or not at all, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [dataclasses.asdict(finding) for finding in advice.findings]
    write_json(folder / ADVICE, plain({"schema": SCHEMA, **advice.about, "config": advice.config, "findings": found}))
    return folder / ADVICE


def read_advice(path: Path) -> Advice:
    """An advice.json, or the one in a folder. Raises ConfigError: there is none, or it is of another version."""
    path = path / ADVICE if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != SCHEMA:
            raise ConfigError(f"{path} should be advice of version {SCHEMA}. Make it anew by `corebatch advise`.")
        findings = [Finding(**each) for each in values.pop("findings")]
        return Advice(config=values.pop("config"), findings=findings, about=values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} should be what `corebatch advise` wrote. Found: {error!r}") from error


def recommended_values(
    values: Mapping[str, Any], findings: Sequence[Finding]
) -> tuple[dict[str, Any], list[Finding], list[str]]:
    """A config with the keys of what is recommended, those of the smallest factor first.

    Returns:
        The config, the findings whose keys are in it, and why others' are not: a key of theirs was set by a stronger
        one, or the config would be refused.
    """
    made, taken, left_out = dict(values), list[Finding](), list[str]()
    asked = (finding for finding in findings if finding.recommended)
    for finding in sorted(asked, key=lambda one: float("inf") if one.factor is None else one.factor):
        known = [other for other in taken if any(_overlap(a, b) for a in finding.arm for b in other.arm)]
        if known:
            left_out.append(f"{finding.lever}: {known[0].lever} sets the same key.")
            continue
        noise = [other for other in taken if other.of == finding.of == TO_LOSS]
        if noise:  # what is there but once would be lowered twice, and paid for twice
            left_out.append(f"{finding.lever}: {noise[0].lever} lowers what the noise of a step costs already.")
            continue
        try:
            tried = with_keys(made, finding.arm)
            settings_from(tried, "the recommended config").training_arguments()
        except ConfigError as error:
            left_out.append(f"{finding.lever}: {error}")
            continue
        made = tried
        taken.append(finding)
    return made, taken, left_out


def _overlap(one: str, other: str) -> bool:
    """Whether two flat keys are one, or one lies within the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def write_recommended(values: Mapping[str, Any], taken: Sequence[Finding], folder: Path) -> Path:
    """Writes recommended.yaml, whole or not at all; what was set stands in its head."""
    keys = [f"#   {key}: {json.dumps(value)}  ({each.lever})" for each in taken for key, value in each.arm.items()]
    head = ["# Written by `corebatch advise`: the config that came in, with these keys set.", *(keys or ["#   none"])]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECOMMENDED, "\n".join(head) + "\n" + yaml.safe_dump(dict(values), sort_keys=False))
    return folder / RECOMMENDED
