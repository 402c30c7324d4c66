"""By what a model is known again: shapes and types, the weights that are not trained, its configuration, adapters and
tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

AT_ONCE = 2**24
SAMPLED = 64
"""Elements of each weight that go into the digest with their places, beside the sum over all of its bits."""
VOLATILE = {
    *("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "return_dict"),
    *("output_hidden_states", "output_attentions", "architectures", "attn_implementation", "_commit_hash"),
    *("_attn_implementation_autoset", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "runtime_config", "pad_token_id", "bos_token_id", "eos_token_id"),
}
"""Keys of configurations that do not change what is trained, that loading sets anew, or that the Trainer aligns with
the tokenizer; the type is in the hash of shapes."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def describe_model(model: Any) -> dict[str, Any]:
    """A model's class, its numbers of parameters, a hash of their names, shapes, types and which are trained, and a
    digest of the weights that are not."""
    digest, total, trained = hashlib.sha256(), 0, 0
    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty tensor in its place
        count = 1
        for size in shape:
            count *= size
        total += count
        trained += count if parameter.requires_grad else 0
        digest.update(f"{name} {shape} {parameter.dtype} {parameter.requires_grad}\n".encode())
    kind = type(model).__name__
    found = {"class": kind, "parameters": total, "trained_parameters": trained, "hash": digest.hexdigest()[:16]}
    return found | {"weights": frozen_weights(model)}


def frozen_weights(model: Any) -> str | None:
    """A digest of the weights that are not trained: of the base model, with adapters. None where there are none, or
    they are not here (sharded, or on the meta device).

    What is trained is in the checkpoint. Of each weight the sum of its bits, as integers and so in whatever order, and
    a few elements: every change of an element shows unless another undoes it in the sum.
    """
    frozen = [(name, each.detach()) for name, each in sorted(model.named_parameters()) if not each.requires_grad]
    if not frozen or any(hasattr(each, "ds_shape") or not _here(each) for _, each in frozen):
        return None
    digest = xxhash.xxh3_128()
    with torch.no_grad():
        for name, weight in frozen:
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(_weight_digest(weight).cpu().numpy().tobytes())
    return str(digest.hexdigest()[:16])


def _here(weight: Tensor) -> bool:
    return weight.device.type != "meta" and not hasattr(weight, "placements")  # a DTensor has a part of it


def _weight_digest(weight: Tensor) -> Tensor:
    """LongTensor [1 + samples]: the sum of all bits, and elements at equal distances."""
    plain = weight.as_subclass(Tensor)
    flat = (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()]) if flat.dtype != torch.bool else flat.to(torch.int8)
    if not len(bits):
        return torch.zeros(1, dtype=torch.int64)
    total = torch.stack([part.sum(dtype=torch.int64) for part in bits.split(AT_ONCE)]).sum()
    places = torch.arange(min(SAMPLED, len(bits)), device=bits.device) * len(bits) // min(SAMPLED, len(bits))
    return torch.cat([total.reshape(1), bits[places].long()])


def describe_config(model: Any) -> dict[str, Any]:
    """What the model's configuration says beyond shapes: positions, norms, windows, quantisation."""
    config = getattr(model, "config", None)
    return _plain(config.to_dict()) if config is not None and hasattr(config, "to_dict") else {}


def describe_adapters(model: Any) -> dict[str, Any]:
    """The settings of peft's adapters by `adapter.key`: rank, alpha, dropout, targets and all others."""
    found = getattr(model, "peft_config", None)
    adapters = found.items() if isinstance(found, Mapping) else ()
    return {
        f"{name}.{key}": value
        for name, config in adapters
        if hasattr(config, "to_dict")
        for key, value in _plain(config.to_dict()).items()
    }


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary, special tokens and chat template of a tokenizer, the first and the last as hashes; nothing of what
    is none."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if not hasattr(tokenizer, "get_vocab"):
        return {}
    template = getattr(tokenizer, "chat_template", None)
    return {
        "vocabulary": _digest(f"{token} {number}" for token, number in sorted(tokenizer.get_vocab().items())),
        "special_tokens": _plain(dict(getattr(tokenizer, "special_tokens_map", {}))),
        "chat_template": None if template is None else _digest([json.dumps(template, sort_keys=True, default=str)]),
    }


def describe_collator(collator: Any) -> dict[str, Any]:
    """The class of a collator and those of its settings that are plain values."""
    collator = getattr(collator, "collator", collator)
    values = vars(collator) if hasattr(collator, "__dict__") else {}
    plain = {key: each for key, each in values.items() if isinstance(each, bool | int | float | str | None)}
    return {"class": getattr(collator, "__name__", type(collator).__name__)} | {
        key: value for key, value in sorted(plain.items()) if not key.startswith("_")
    }


def _digest(lines: Iterable[str]) -> str:
    made = xxhash.xxh3_128()
    for line in lines:
        made.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return str(made.hexdigest()[:16])


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): plain(value) for key, value in values.items() if str(key) not in VOLATILE}


def plain(value: Any) -> Any:
    """As JSON keeps it: sets as sorted lists, and whatever else there is as text."""
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    return str(getattr(value, "value", value))
