"""Model, tokenizer and data from settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from corebatch.config.settings import ModelSettings, Settings
from corebatch.errors import ConfigError
from corebatch.mixture import DatasetSpec, Mixture, MixturePreview, load_mixture, preview_mixture
from corebatch.mixture.examples import check_column

MOST_WORDS = 600
"""Characters of another package's message; some list all models that there are."""


def load_tokenizer(settings: ModelSettings) -> Any:
    """Raises ConfigError that names the path if there is no tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model_name_or_path, revision=settings.model_revision, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:  # whatever a damaged file makes other packages raise
        raise ConfigError(_missing("tokenizer", settings, error)) from error
    _set_special_tokens(tokenizer, settings)
    return tokenizer


def _set_special_tokens(tokenizer: Any, settings: ModelSettings) -> None:
    """The keys eos_token and pad_token; a missing padding token is the end of sequence's. Raises ConfigError: a token
    that the tokenizer does not know, or none to pad with."""
    known = tokenizer.get_vocab()
    for key in ("eos_token", "pad_token"):
        token = getattr(settings, key)
        if token is None:
            continue
        if token not in known:
            raise ConfigError(f"{key} should be a token of the tokenizer's vocabulary. Found {token!r}.")
        setattr(tokenizer, key, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"The tokenizer of {settings.model_name_or_path} has neither a padding nor an end-of-sequence token. Give "
            "eos_token (what answers end with) or pad_token, each a token of its vocabulary, as in `eos_token: </s>`."
        )


def load_model(settings: Settings) -> Any:
    """The model to train, in four bits if that is asked for, with adapters if LoRA is on. Raises ConfigError: there is
    no such model, no bitsandbytes, or the adapters find nothing to adapt."""
    own = settings.model
    options = _model_options(own)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(own.model_name_or_path, output_loading_info=True, **options)
    except Exception as error:  # whatever a damaged file makes other packages raise
        raise ConfigError(_missing("model", own, error)) from error
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"model_name_or_path: the weights of {own.model_name_or_path} should be those of a "
            f"{type(model).__name__}, or untrained numbers would stand in for them. Found none for "
            f"{', '.join(missing[:4])}{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}."
        )
    if (
        own.load_in_4bit
    ):  # norms, embedding and head in float32; with checkpointing, an embedding that asks for gradients
        training = settings.training
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=bool(
                training.get("activation_checkpointing") or training.get("gradient_checkpointing")
            ),
            gradient_checkpointing_kwargs=training.get("activation_checkpointing_kwargs")
            or training.get("gradient_checkpointing_kwargs"),
        )
    return with_adapters(model, settings)


def skeleton(settings: Settings) -> Any:
    """The same model without weights (on the meta device): sizes can be counted, nothing is computed."""
    own = settings.model
    try:
        config = AutoConfig.from_pretrained(
            own.model_name_or_path, revision=own.model_revision, trust_remote_code=own.trust_remote_code
        )
        dtype = getattr(config, "dtype", None) or torch.float32 if own.dtype == "auto" else getattr(torch, own.dtype)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=own.attn_implementation or "eager", trust_remote_code=own.trust_remote_code
            ).to(dtype)
    except Exception as error:  # as above
        raise ConfigError(_missing("model", own, error)) from error
    with torch.device("meta"):
        return with_adapters(model, settings)


SOURCE_COLUMN, NO_COLUMN = "source", "none"
"""What a mixture calls its sources' column, and the word for a config without such a column."""


def with_adapters(model: Any, settings: Settings) -> Any:
    """LoRA by peft if it is on, else the model as it is."""
    if not settings.lora:
        return model
    own = settings.model
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=own.lora_r,
            lora_alpha=own.lora_alpha,
            lora_dropout=own.lora_dropout,
            target_modules=own.lora_target_modules,
        )
        return get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ConfigError(f"peft refuses the LoRA settings: {error}") from error


def read_mixture(settings: Settings, tokenizer: Any, *, evaluation: bool = False) -> Mixture:
    """The data of a run, tokenised."""
    return _read(settings, _specs(settings, evaluation), tokenizer)


def read_target(settings: Settings, tokenizer: Any) -> Any:
    """The rows of `target_datasets`, tokenised as those that are trained; None without."""
    specs = settings.data.target_datasets
    return _read(settings, specs, tokenizer).dataset if specs else None


def _read(settings: Settings, specs: Sequence[DatasetSpec], tokenizer: Any) -> Mixture:
    return load_mixture(
        list(specs),
        tokenizer,
        dataset_num_proc=settings.data.dataset_num_proc,
        cache=settings.data.dataset_cache,
        **_how_rows_are_read(settings),
    )


def preview(settings: Settings, tokenizer: Any, *, evaluation: bool = False) -> MixturePreview:
    """The data of a run: all rows read, a sample tokenised."""
    specs = _specs(settings, evaluation)
    return preview_mixture(list(specs), tokenizer, **_how_rows_are_read(settings))


def _specs(settings: Settings, evaluation: bool) -> list[DatasetSpec]:
    if evaluation:
        return list(settings.data.eval_datasets)
    column = settings.coreset.source_column
    if column not in (SOURCE_COLUMN, NO_COLUMN):
        check_column(settings.data.datasets, column, "source_column")
    if settings.coreset.weight_column is not None:
        check_column(settings.data.datasets, settings.coreset.weight_column, "weight_column")
    return list(settings.data.datasets)


def _how_rows_are_read(settings: Settings) -> dict[str, Any]:
    data = settings.data
    return {
        "max_length": data.max_length,
        "source_column": settings.coreset.source_column,
        "weight_column": settings.coreset.weight_column,
        "apply_chat_template": data.apply_chat_template,
        "chat_template": data.chat_template,
        "separator": data.separator,
        "train_turns": data.train_turns,
        "seed": int(settings.training.get("seed", 42)),
    }


def _model_options(own: ModelSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"revision": own.model_revision, "trust_remote_code": own.trust_remote_code}
    options["dtype"] = "auto" if own.dtype == "auto" else getattr(torch, own.dtype)
    if own.attn_implementation is not None:
        options["attn_implementation"] = own.attn_implementation
    if own.load_in_4bit:
        options["quantization_config"] = _four_bits(own)
    return options


def _four_bits(own: ModelSettings) -> BitsAndBytesConfig:
    """As in TRL: weights multiply in the model's own type unless another is given."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("load_in_4bit needs bitsandbytes, which is not installed: pip install 'corebatch[qlora]'.")
    compute = own.bnb_4bit_compute_dtype or ("float32" if own.dtype == "auto" else own.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=own.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        bnb_4bit_use_double_quant=own.use_bnb_nested_quant,
    )


def _missing(what: str, own: ModelSettings, error: Exception) -> str:
    path = Path(own.model_name_or_path)
    local = path.exists() or own.model_name_or_path.startswith((".", "/", "~"))
    kind = "folder" if local else "folder or hub id"
    found = (str(error) or type(error).__name__)[:MOST_WORDS]
    return f"model_name_or_path: no {what} can be loaded from the {kind} {own.model_name_or_path!r}: {found}"
