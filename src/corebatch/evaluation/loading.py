"""A trained model and its tokenizer, from a run's folder, a model's folder or a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from corebatch.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


def load_trained(
    model: str, base_model: str | None = None, *, dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a run's folder, a model's folder or a hub id.

    A folder with adapters has them put on their base model, in `adapter_config.json` or `base_model`. Raises
    ConfigError: there is no model, or its base model is not where it was.
    """
    folder = Path(model)
    adapter = folder / "adapter_config.json"
    options = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code}
    if folder.is_dir() and not adapter.is_file() and not (folder / "config.json").is_file():
        raise ConfigError(f"{model} should hold a model or adapters. {_instead(folder)}")
    if base_model is not None and not adapter.is_file():
        raise ConfigError(f"--base_model goes with adapters. Found none in {model}.")
    if adapter.is_file():
        base = base_model or _base_of(adapter)
        made = _loaded(
            f"the base model of {model} (--base_model says where it is now)",
            partial(AutoModelForCausalLM.from_pretrained, base, **options),
        )
        made = _loaded(f"the adapters in {model}", partial(PeftModel.from_pretrained, made, model))
    else:
        base = model
        made = _loaded(f"the model {model}", partial(AutoModelForCausalLM.from_pretrained, model, **options))
    own = folder.is_dir() and (folder / "tokenizer_config.json").is_file()
    where = model if own else base
    tokenizer = _loaded(
        f"the tokenizer of {where}", partial(AutoTokenizer.from_pretrained, where, trust_remote_code=trust_remote_code)
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return made.eval(), tokenizer


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # whatever a damaged file makes other packages raise
        raise ConfigError(f"Cannot load {what}: {error}") from error


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{adapter} should be a readable JSON object. Found: {error}.") from error
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{adapter} should name a base model. Found {base!r}: give --base_model.")
    return base


def _instead(folder: Path) -> str:
    """What a folder without a model holds."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if checkpoints:
        return f"Found checkpoints: {', '.join(path.name for path in checkpoints)}. Give one of them."
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
    return f"Found {found or 'nothing'}."
