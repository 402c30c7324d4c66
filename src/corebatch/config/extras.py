"""Training settings of packages that corebatch does not bring: a missing one is told with its extra's name, at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from corebatch.errors import MissingExtraError

OPTIMIZERS = {
    r"galore_": ("galore_torch", "layerwise"),
    r"apollo_": ("apollo_torch", "layerwise"),
    r"(ada)?lomo$": ("lomo_optim", "layerwise"),
    r"ademamix|paged_|lion_|rmsprop_bnb|(galore_)?adamw_(bnb|8bit)": ("bitsandbytes", "qlora"),
}
"""What names of `optim` begin with -> the module that has it, and the extra that brings that."""

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio"}
"""A word of `report_to`, also its module's name -> the extra."""


def check_extras(training: Mapping[str, Any]) -> None:
    """Raises MissingExtraError: a key of TrainingArguments asks for a package that is not installed."""
    for key, value, module, extra in _asked(training):
        if find_spec(module) is None:
            raise MissingExtraError(f"{key}: {value} needs {module}: pip install 'corebatch[{extra}]'.")


def _asked(training: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    """Key, value, module and extra of all that is asked for."""
    optim = training.get("optim")
    name = str(getattr(optim, "value", optim))
    for pattern, (module, extra) in OPTIMIZERS.items():
        if re.match(pattern, name):
            yield "optim", name, module, extra
    given = training.get("report_to") or ()
    for tracker in [given] if isinstance(given, str) else given:
        if tracker in TRACKERS:
            yield "report_to", tracker, tracker, TRACKERS[tracker]
    if training.get("use_liger_kernel"):
        yield "use_liger_kernel", "true", "liger_kernel", "liger"
    if training.get("deepspeed"):
        yield "deepspeed", training["deepspeed"], "deepspeed", "deepspeed"
