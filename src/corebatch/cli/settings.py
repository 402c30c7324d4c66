"""A config file and `--key value` pairs become checked settings; every error names the key."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments

from corebatch._registry import hint
from corebatch.errors import ConfigError
from corebatch.mixture import DatasetSpec, parse_specs
from corebatch.trainer import CoresetConfig


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and what of it is trained. LoRA is on if any `lora_` key is given, unless `use_peft` says.

    The keys are those of TRL's ModelConfig; `eos_token` and `pad_token` (tokens of the vocabulary) are those of its
    SFTConfig, and go into the tokenizer that is saved. `load_in_4bit` keeps the frozen weights in four bits (QLoRA,
    arXiv 2305.14314); they multiply in `bnb_4bit_compute_dtype`, which is `dtype` if it is not given.
    """

    model_name_or_path: str
    model_revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    use_peft: bool | None = None
    lora_r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    lora_target_modules: Any = "all-linear"
    load_in_4bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    use_bnb_nested_quant: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, and how rows become tokens; see `corebatch.mixture.load_mixture`.

    Attributes:
        eval_by_source: the held-out loss is logged by source as well, if there are several; every row is still
            evaluated once.
        eval_tasks: lines or mappings as in `corebatch.evaluation.parse_task`, measured before and after training.
    """

    datasets: tuple[DatasetSpec, ...]
    eval_datasets: tuple[DatasetSpec, ...] = ()
    eval_by_source: bool = True
    eval_tasks: tuple[Any, ...] = ()
    max_length: int = 1024
    apply_chat_template: bool = False
    chat_template: str | None = None
    separator: str = "\n"
    train_turns: str = "all"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that `train` and `validate` need.

    Attributes:
        training: keyword arguments of `transformers.TrainingArguments`.
        lora: whether adapters are trained.
    """

    model: ModelSettings
    data: DataSettings
    training: dict[str, Any]
    coreset: CoresetConfig
    lora: bool

    def training_arguments(self) -> TrainingArguments:
        """Raises ConfigError with transformers' own words if it refuses a value."""
        try:
            return TrainingArguments(**self.training)
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"transformers refuses these training settings: {error}") from error


TRAINING_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "save_total_limit": 2,
    "dataloader_pin_memory": torch.cuda.is_available(),  # a warning at every start where there is no GPU
}
"""Where `corebatch train` differs from TrainingArguments' own defaults."""

_MODEL = {f.name: f for f in dataclasses.fields(ModelSettings)}
_DATA = {f.name: f for f in dataclasses.fields(DataSettings)}
_TRAINING = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
_LISTS = ("datasets", "eval_datasets")
KEYS = (*_MODEL, *_DATA, *_TRAINING, "coreset")


def load_settings(config: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file, changed by `--key value` pairs.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, missing or of the wrong type.
    """
    return settings_from(*read_values(config, overrides))


def read_values(config: Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The keys of a YAML file, changed by `--key value` pairs, and where they come from, for errors."""
    values = read_config(config) if config is not None else {}
    for key, value in parse_overrides(overrides):
        _expand(values, key)
        _set(values, key.split("."), value, key)
    return values, str(config) if config is not None else "the command line"


def settings_from(values: dict[str, Any], where: str) -> Settings:
    """Settings from keys and values; the block `compare` is left to `corebatch compare`.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    values = {key: value for key, value in values.items() if key != "compare"}
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}.{hint(key, KEYS)}")
    for key in ("model_name_or_path", "datasets", "output_dir"):
        if not values.get(key):
            raise ConfigError(f"{where}: the key {key!r} is missing.")
    hints = typing.get_type_hints(ModelSettings)
    model = ModelSettings(**{k: coerce(values[k], hints[k], k) for k in _MODEL if k in values})
    hints = typing.get_type_hints(DataSettings)
    lists: dict[str, Any] = {k: tuple(parse_specs(values[k])) for k in _LISTS if values.get(k)}
    plain: dict[str, Any] = {
        k: coerce(values[k], hints[k], k) for k in _DATA if k in values and k not in (*_LISTS, "eval_tasks")
    }
    plain["eval_tasks"] = _tasks(values.get("eval_tasks"))
    data = DataSettings(**lists, **plain)
    hints = typing.get_type_hints(TrainingArguments)
    hints["resume_from_checkpoint"] = bool | str | None  # the Trainer's `train` takes "the last one" as well
    training = {k: coerce(values[k], hints[k], k) for k in _TRAINING if k in values}
    lora = model.use_peft if model.use_peft is not None else any(key.startswith("lora_") for key in values)
    _check_four_bits(values, model, lora)
    return Settings(
        model=model,
        data=data,
        training={**TRAINING_DEFAULTS, **training},
        coreset=CoresetConfig.from_dict(values.get("coreset")),
        lora=lora,
    )


def _tasks(given: Any) -> tuple[Any, ...]:
    """Raises ConfigError if it is no list of lines and mappings; what they say is checked when they are made."""
    entries = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(entries, list) or not all(isinstance(entry, str | dict) for entry in entries):
        raise ConfigError(f"eval_tasks should be a list of name:path,key=value, or of mappings. Found {given!r}.")
    return tuple(entries)


def _check_four_bits(values: dict[str, Any], model: ModelSettings, lora: bool) -> None:
    """Raises ConfigError for keys of quantisation that do nothing, or that nothing could be trained with."""
    idle = [key for key in values if key in _MODEL and "bnb" in key and values[key] is not None]
    if idle and not model.load_in_4bit:
        raise ConfigError(f"{', '.join(idle)} should stand beside load_in_4bit: true. Found load_in_4bit: false.")
    if model.load_in_4bit and not lora:
        raise ConfigError(
            "load_in_4bit freezes the model's weights, so adapters should be trained: give lora_r. Found no LoRA."
        )


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: missing, not YAML (with the line), or no block of keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} should hold keys and values. Found {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def parse_overrides(arguments: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """`--key value`, `--key=value` and `--flag` as pairs; values are read as YAML."""
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(f"Expected `--key value` after the config file. Found {word!r}.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if position < len(arguments) and not arguments[position].startswith("--"):
                text = arguments[position]
                position += 1
            else:
                text = "true"
        key = key.replace("-", "_")
        yield key, _override(key, text)


TEXTS = ("model_name_or_path", "output_dir", "run_name", "eos_token", "pad_token", "chat_template", "separator")
"""Keys whose values are text on the command line also where YAML would read something else, as in `[PAD]`."""


def _override(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if key in TEXTS:
            return text
        raise ConfigError(f"--{key}: {text!r} is not a YAML value: {error}") from error
    return text if key in TEXTS and not isinstance(value, str) and text not in ("null", "~") else value


def _expand(values: dict[str, Any], key: str) -> None:
    """Where a key of `coreset.scoring` is given, a plain way that stands there becomes a block with the key `way`."""
    block = values.get("coreset")
    if key.startswith("coreset.scoring.") and isinstance(block, dict) and isinstance(block.get("scoring"), str):
        block["scoring"] = {"way": block["scoring"]}


def _set(values: dict[str, Any], path: Sequence[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--{key}: {part!r} is no block of keys. Found {inner!r}.")
        values = inner
    values[path[-1]] = value


def coerce(value: Any, annotation: Any, key: str) -> Any:
    """A value of the annotated type; numbers that YAML reads as text, such as 5e-4, become numbers.

    Raises:
        ConfigError: the value is of another type; the key is named.
    """
    kinds = _members(annotation)
    if value is None or Any in kinds:
        return value
    if isinstance(value, str) and not any(kind in kinds for kind in (str, dict, list)):
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(value)
                except ValueError:
                    continue
    literal = [kind for kind in kinds if not isinstance(kind, type)]
    if value in literal:
        return value
    simple = [kind for kind in kinds if kind in (bool, int, float, str)]
    if simple and len(simple) + len(literal) == len([kind for kind in kinds if kind is not type(None)]):
        fits = any(
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            for kind in simple + ([int] if float in simple else [])
        )
        if not fits:
            wanted = " or ".join([kind.__name__ for kind in simple] + [repr(kind) for kind in literal])
            raise ConfigError(f"{key} should be {wanted}. Found {value!r}.")
    elif literal and not simple:
        raise ConfigError(f"{key} should be one of {', '.join(map(repr, literal))}. Found {value!r}.")
    return value


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, literals as their values, generic types as their origins."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    if origin is Literal:
        return list(typing.get_args(annotation))
    return [origin or annotation]
