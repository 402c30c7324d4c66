"""Weights of a run's checkpoints in the advised model, and whether they are of that model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from corebatch.errors import InputError
from corebatch.record.checkpoint import MARKER
from corebatch.record.model_identity import (
    describe_adapters,
    describe_config,
    describe_model,
    describe_tokenizer,
    plain,
)
from corebatch.record.run_identity import differences

OF_ADAPTERS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")


def check_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Compares what a checkpoint says of its model, which may have the same shapes, with the model.

    Raises:
        InputError: another base model, configuration, adapter or tokenizer; names what differs.
    """
    expected = {"model.config": describe_config(model), "adapter": describe_adapters(model)}
    if found := _json(folder / MARKER).get("run"):
        expected |= {"model": describe_model(model), "tokenizer": describe_tokenizer(tokenizer)}
    else:
        found = {"model.config": plain(_json(folder / "config.json"))}
        for name, config in (model.peft_config if isinstance(model, PeftModel) else {}).items():
            said = _json(folder / "adapter_config.json")
            found["adapter"] = {f"{name}.{key}": said[key] for key in OF_ADAPTERS if key in said}
            bases = (said.get("base_model_name_or_path"), config.base_model_name_or_path)
            one, other = (Path(str(each or "")).name for each in bases)
            if one and other and one != other:
                raise InputError(f"it is of another model: adapters of {one}, where the config has {other}")
    if differing := differences(json.loads(json.dumps(found)), json.loads(json.dumps(expected))):
        raise InputError(f"it is of another model: {'; '.join(differing)}")


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@torch.no_grad()
def load_trained_weights(model: Any, folder: Path) -> float:
    """Gives a model what a checkpoint has of its trained parameters, and returns the cosine of the matrices among both:
    1 for adapters, which begin at random.

    Raises:
        InputError: the folder has no such weights, or those of another model.
    """
    adapted = isinstance(model, PeftModel)
    try:
        if adapted:
            saved: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
        else:
            saved = {
                name: value
                for path in sorted(folder.glob("model*.safetensors"))
                for name, value in load_file(path).items()
            }
    except Exception as error:  # of a file that is missing, damaged, or of another kind
        raise InputError(f"its weights cannot be read: {error}") from error
    if not saved:
        raise InputError(f"it has no weights of {'adapters' if adapted else 'a model'} in safetensors")
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = get_peft_model_state_dict(model) if adapted else own
    _check_names(wanted, saved)
    if adapted:
        set_peft_model_state_dict(model, saved)
        return 1.0
    products = torch.zeros(3, dtype=torch.float64)
    for name, parameter in own.items():
        value = saved[name].to(parameter)
        if parameter.ndim > 1:
            pairs = ((parameter, value), (parameter, parameter), (value, value))
            products += torch.tensor([float((a.double() * b.double()).sum()) for a, b in pairs])
        parameter.copy_(value)
    return float(products[0] / (products[1] * products[2]).sqrt()) if products[1:].all() else 1.0


def _check_names(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises InputError unless all that is wanted was saved, in the same shapes."""
    missing: Sequence[str] = [name for name in wanted if name not in saved]
    other = [name for name in wanted if name in saved and saved[name].shape != wanted[name].shape]
    if missing or other:
        what = f"no {missing[0]}" if missing else f"{other[0]} of shape {list(saved[other[0]].shape)}"
        raise InputError(f"it is of another model: found {what}")
