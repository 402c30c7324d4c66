"""Which models' scoring forwards can be used again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

FUNCTION = "_gradient_checkpointing_func"
"""What transformers calls the checkpointing function of a block."""


def unfit(model: nn.Module) -> str | None:
    """Why the scoring forward of this model cannot be reused, in one sentence; None if it can.

    Looks at modules and configuration alone. What only a forward shows (a model that adds something between its
    blocks, a scorer that changes rows) is found by `BlockStates`, which then keeps nothing and says so in `reason`.
    """
    for check in (_wrapping, structure, _randomness, _state):
        found = check(model)
        if found is not None:
            return found
    return None


def _wrapping(model: nn.Module) -> str | None:
    """Compiled or sharded models: their blocks' forwards are not the modules' own, or the weights are not there."""
    for module in model.modules():
        kind = type(module).__name__
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            return "The model is compiled with torch.compile."
        if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            return "A forward of the model is compiled with torch.compile."
        if kind == "FullyShardedDataParallel" or kind.startswith("FSDP"):
            return "The model is sharded by FSDP."
        if kind == "DeepSpeedEngine":  # it counts the gradients of a backward, and ours has one within another
            return "The model is run by DeepSpeed."
        if isinstance(module, nn.DataParallel):
            return "The model is wrapped in DataParallel."
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "The model is sharded by DeepSpeed ZeRO-3."
        if hasattr(parameter, "device_mesh"):
            return "The model's parameters are DTensors (FSDP2 or tensor parallelism)."
    if len({str(parameter.device) for parameter in model.parameters()}) > 1:
        return "The model lies on more than one device."
    return None


def structure(model: nn.Module) -> str | None:
    """One list of distinct blocks, all of them checkpointed."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        return "The model has no GradientCheckpointingLayer blocks."
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(child, GradientCheckpointingLayer) for child in module)
    ]
    if len(lists) != 1 or list(map(id, lists[0])) != list(map(id, layers)):
        return f"The model's {len(layers)} checkpointed layers are not one list of distinct blocks."
    off = sum(not getattr(layer, "gradient_checkpointing", False) or not hasattr(layer, FUNCTION) for layer in layers)
    if off:
        return f"Activation checkpointing is off in {off} of {len(layers)} blocks."
    if any("forward" in vars(layer) or "__call__" in vars(layer) for layer in layers):
        return "The forward of a block has been replaced, so that it is perhaps not checkpointed."
    return None


_RANDOM = re.compile(
    r"(dropout|pdrop|dropout_p|dropout_prob|layerdrop|drop_path|drop_path_rate|jitter_noise|jitter_eps)$"
)
_UNUSED = ("summary_", "classifier_", "seq_classif_")  # of heads that a causal language model has not


def _randomness(model: nn.Module) -> str | None:
    """Whatever makes the training forward differ from the scoring forward, which runs in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"Dropout is active: {name or type(module).__name__} has p = {module.p}."
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"Batch normalisation ({name}) makes rows depend on each other."
        for key, value in vars(module).items():
            if _is_random(key, value):
                return f"Dropout or noise is active: {name}.{key} is {value}."
        if getattr(module, "neftune_noise_alpha", None):
            return "NEFTune adds noise to the embedding in training."
    for key, value in _settings(model):
        if _is_random(key, value):
            return f"Dropout or noise is active: the configuration's {key} is {value}."
    return None


def _is_random(key: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return False
    return _RANDOM.search(key) is not None and not key.startswith(_UNUSED)


_STATELESS = ("full_attention", "sliding_attention")


def _state(model: nn.Module) -> str | None:
    """Blocks whose output depends on more than their input's own row: other blocks, other rows, the padding."""
    settings = dict(_settings(model))
    if any(getattr(module, "_is_stateful", False) for module in model.modules()):
        return "The model is recurrent or hybrid: its blocks keep a state besides attention."
    other = [kind for kind in settings.get("layer_types") or () if kind not in _STATELESS]
    if other:
        return f"The model has layers of type {other[0]}, whose output depends on more than the row itself."
    if settings.get("num_kv_shared_layers"):
        return "The model's blocks share keys and values, so that one cannot be recomputed without another."
    if settings.get("attn_temperature_tuning"):
        return "The model scales attention by absolute position."
    ropes = {value for key, value in _settings(model) if key in ("rope_type", "type") and isinstance(value, str)}
    for rope in ropes & {"dynamic", "longrope"}:
        return f"The model's rotary embedding ({rope}) depends on the longest row of a micro-batch."
    for key in ("output_router_logits", "output_attentions"):
        if settings.get(key):
            return f"The configuration's {key} asks for what blocks compute inside."
    for module in model.modules():
        adapters = getattr(module, "peft_config", None)
        if isinstance(adapters, dict) and any(getattr(a, "is_prompt_learning", False) for a in adapters.values()):
            return "Prompt learning lengthens the rows."
    return None


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Keys and values of the text model's configuration and of what is nested in it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            yield from _leaves(module.config.get_text_config().to_dict())
            return


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield str(key), value


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
