"""By what a model is known again: shapes and types, the weights that are not trained, its configuration, adapters and
tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from corebatch.model.digest import weights_digest

VOLATILE = {
    *("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "return_dict"),
    *("output_hidden_states", "output_attentions", "architectures", "attn_implementation", "_commit_hash"),
    *("_attn_implementation_autoset", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "runtime_config", "pad_token_id", "bos_token_id", "eos_token_id"),
}
"""Keys of configurations that do not change what is trained, that loading sets anew, or that the Trainer aligns with
the tokenizer; the type is in the hash of shapes."""


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
    frozen = ((name, each) for name, each in model.named_parameters() if not each.requires_grad)
    return found | {"weights": weights_digest(frozen)}


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
