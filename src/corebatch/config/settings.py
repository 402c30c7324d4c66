"""A config file and `--key value` pairs become checked settings; every error names the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import get_token
from transformers import Trainer, TrainingArguments

from corebatch.config.coerce import check_number, coerce, members
from corebatch.config.extras import check_extras
from corebatch.config.other_names import other_name
from corebatch.config.values import place, read_values
from corebatch.errors import ConfigError, CorebatchError
from corebatch.mixture import DatasetSpec, check_processes, parse_specs
from corebatch.mixture.spec import take_shares
from corebatch.optimizers import OPTIMIZERS, POWER, training_arguments
from corebatch.options import hint
from corebatch.trainer import CoresetConfig


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and what of it is trained. LoRA is on if any `lora_` key is given, unless `use_peft` says.

    The keys are those of TRL's ModelConfig; `eos_token` and `pad_token` (tokens of the vocabulary) are those of its
    SFTConfig, and go into the tokenizer that is saved. `load_in_4bit` keeps the frozen weights in four bits (QLoRA,
    arXiv 2305.14314); they multiply in `bnb_4bit_compute_dtype`, which is `dtype` if it is not given.

    Attributes:
        model_name_or_path: a folder as `save_pretrained` leaves it, or a hub id.
        model_revision: of the hub: a branch, a tag or a commit.
        dtype: of the weights that are loaded; "auto": as they are stored.
        attn_implementation: as in transformers, such as "sdpa" or "flash_attention_2"; None: its choice.
        eos_token, pad_token: tokens of the vocabulary, where the tokenizer has none or others.
        trust_remote_code: whether code that comes with the model is run.
        use_peft: whether adapters are trained; None: if any `lora_` key is given.
        lora_r: the rank of the adapters.
        lora_alpha: their output is multiplied by lora_alpha / lora_r.
        lora_dropout: of their input, a probability.
        lora_target_modules: names of the modules that have adapters, or "all-linear".
        load_in_4bit: whether frozen weights are kept in four bits.
        bnb_4bit_quant_type: the four-bit data type.
        bnb_4bit_compute_dtype: in which four-bit weights multiply; None: `dtype`.
        use_bnb_nested_quant: whether the scales of four-bit weights are quantised too.
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
        datasets: what is trained: entries, or paths alone.
        eval_datasets: held-out rows.
        target_datasets: rows that `coreset.target` follows, and nothing trains.
        eval_by_source: the held-out loss is logged by source as well, if there are several; every row is still
            evaluated once.
        eval_tasks: lines or mappings as in `corebatch.evaluation.parse_task`, measured before and after training.
        max_length: tokens of a row, at most; longer rows keep their beginning.
        apply_chat_template: whether prompts with answers become turns of a chat; conversations always are.
        chat_template: in place of the tokenizer's: a Jinja template, the path of one, "plain" or "trl"; all but the
            last become the template of the tokenizer that is saved with the model.
        separator: what stands between prompt and answer where no template does.
        train_turns: which answers of a conversation are trained: "all", "last", or "each", a row for each.
        dataset_num_proc: processes that tokenise; the rows are the same with any number.
        dataset_cache: whether tokenised rows are kept for the next start, or the folder that they are kept in.
    """

    datasets: tuple[DatasetSpec, ...]
    eval_datasets: tuple[DatasetSpec, ...] = ()
    target_datasets: tuple[DatasetSpec, ...] = ()
    eval_by_source: bool = True
    eval_tasks: tuple[Any, ...] = ()
    max_length: int = 1024
    apply_chat_template: bool = False
    chat_template: str | None = None
    separator: str = "\n"
    train_turns: str = "all"
    dataset_num_proc: int | None = None
    dataset_cache: bool | str = True

    def __post_init__(self) -> None:
        check_processes(self.dataset_num_proc)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that `train` and `validate` need.

    Attributes:
        training: keyword arguments of `transformers.TrainingArguments`, by `optimizers.training_arguments`.
        lora: whether adapters are trained.
        overwrite: whether a run in `output_dir` that has no complete checkpoint is begun anew.
    """

    model: ModelSettings
    data: DataSettings
    training: dict[str, Any]
    coreset: CoresetConfig
    lora: bool
    overwrite: bool = False

    def training_arguments(self) -> TrainingArguments:
        """Raises MissingExtraError; ConfigError: what transformers refuses, in its words, or idle `optim_args`."""
        check_extras(self.training)
        try:
            args: TrainingArguments = training_arguments(TrainingArguments, **self.training)
        except CorebatchError:
            raise
        except (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError, OSError) as error:
            own = {"OptimizerNames": OPTIMIZERS, "SchedulerType": (POWER,)}
            more = "".join(f" corebatch has {', '.join(own[k])} beside these." for k in own if k in str(error))
            raise ConfigError(f"transformers refuses these training settings: {error}{more}") from error
        check_optim_args(args)
        return args


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
_LISTS = ("datasets", "eval_datasets", "target_datasets")
_PLAIN: dict[str, Any] = {
    key: annotation
    for kind in (TrainingArguments, DataSettings, ModelSettings)
    for key, annotation in typing.get_type_hints(kind).items()
    if key in {**_MODEL, **_DATA, **_TRAINING} and key not in (*_LISTS, "eval_tasks")
}
"""The keys that hold one value, with its type."""
KEYS = (*_MODEL, *_DATA, *_TRAINING, "coreset", "overwrite")


def load_settings(config: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file, changed by `--key value` pairs. Raises ConfigError: the file cannot be read, or a key
    is unknown, missing or of the wrong type."""
    return settings_from(*read_values(config, overrides))


def settings_from(values: dict[str, Any], where: str) -> Settings:
    """Settings from keys and values; the blocks `compare`, `search` and `subset` are left to their commands. Raises
    ConfigError: a key is unknown, missing or of the wrong type."""
    values = {key: value for key, value in values.items() if key not in ("compare", "search", "subset")}
    if "overwrite_output_dir" in values:
        raise ConfigError(
            f"{place(where, 'overwrite_output_dir')}: overwrite_output_dir is no key. Expected `overwrite: true` to "
            "begin a run anew that has no complete checkpoint, or another output_dir: nothing else is overwritten."
        )
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{place(where, key)}: unknown key {key!r}.{_advice(key)}")
    for key in ("model_name_or_path", "datasets", "output_dir"):
        if not values.get(key):
            raise ConfigError(f"{place(where, key)}: the key {key!r} is missing.")
    given = {
        **_PLAIN,
        "resume_from_checkpoint": bool | str | None,
    }  # the Trainer's `train` takes "the last one" as well
    checked = {k: _checked(values[k], given[k], k, where) for k in given if k in values}
    model = ModelSettings(**{k: checked[k] for k in _MODEL if k in checked})
    lists: dict[str, Any] = {k: tuple(parse_specs(values[k], k)) for k in _LISTS if values.get(k) not in (None, [])}
    lists["datasets"], coreset = _drawn_by_shares(*_replayed(lists["datasets"], values.get("coreset")))
    for block, spec in ((key, spec) for key in _LISTS[1:] for spec in lists.get(key, ())):
        for name, what in (("share", "drawn"), ("replay", "trained")):
            if (found := getattr(spec, name)) is not None:
                raise ConfigError(f"{block}: `{name}` says how often rows are {what} in training. Found {found}.")
    plain = {k: checked[k] for k in _DATA if k in checked}
    data = DataSettings(**lists, **plain, eval_tasks=_tasks(values.get("eval_tasks")))
    training = {k: checked[k] for k in _TRAINING if k in checked}
    lora = model.use_peft if model.use_peft is not None else any(key.startswith("lora_") for key in values)
    _check_four_bits(values, model, lora)
    _check_hub(training)
    return Settings(
        model=model,
        data=data,
        training={**TRAINING_DEFAULTS, **training},
        coreset=CoresetConfig.from_dict(coreset),
        lora=lora,
        overwrite=bool(_checked(values.get("overwrite", False), bool, "overwrite", where)),
    )


def _replayed(specs: tuple[DatasetSpec, ...], coreset: Any) -> tuple[tuple[DatasetSpec, ...], Any]:
    """The entries without what they are replayed by, and the block `coreset` with it. Raises ConfigError: it has it
    already."""
    specs, shares = take_shares(specs, key="replay")
    block = {} if coreset is None else coreset
    if not shares or not isinstance(block, Mapping):
        return specs, coreset
    if block.get("replay") is not None:
        raise ConfigError(
            f"coreset.replay and `replay` in an entry of datasets both say what is replayed. Found both: leave one out "
            f"({', '.join(shares)})."
        )
    return specs, {**block, "replay": shares}


def _drawn_by_shares(specs: tuple[DatasetSpec, ...], coreset: Any) -> tuple[tuple[DatasetSpec, ...], Any]:
    """The entries without their shares, and the block `coreset` with them. Raises ConfigError: it has others."""
    specs, shares = take_shares(specs)
    block = {} if coreset is None else coreset
    sampling = block.get("sampling") or {} if isinstance(block, Mapping) else None
    if not shares or not isinstance(sampling, Mapping):
        return specs, coreset
    if there := [key for key in ("shares", "temperature") if sampling.get(key) is not None]:
        raise ConfigError(
            f"coreset.sampling.{there[0]} and `share` in an entry of datasets both say how often sources come. Found "
            f"both: leave one out (shares of {', '.join(shares)})."
        )
    return specs, {**block, "sampling": {**sampling, "shares": shares}}


def _checked(value: Any, annotation: Any, key: str, where: str) -> Any:
    if value is False and key.endswith("_strategy"):
        value = "no"  # YAML reads a plain `no` as false
    try:
        found = coerce(value, annotation, key)
        if found is None and not {type(None), Any} & set(members(annotation)):
            raise ConfigError(f"{key} should have a value. Found none.")
        check_number(key, found)
        choices = _TRAINING[key].metadata.get("choices") if key in _TRAINING else None
        if choices and found is not None and found not in choices:
            raise ConfigError(f"{key} should be one of {', '.join(choices)}. Found {found!r}.")
    except ConfigError as error:
        raise ConfigError(f"{place(where, key)}: {error}") from None
    return found


def _advice(key: str) -> str:
    """What an unknown key is called here, or which known one is close."""
    if key in {field.name for field in dataclasses.fields(CoresetConfig)} | {"recipe"}:
        return f" It belongs to the block coreset: coreset.{key}."
    return other_name(key, KEYS) or hint(key, KEYS)


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


def _check_hub(training: Mapping[str, Any]) -> None:
    """Raises ConfigError if a model is to be pushed to the hub, and nobody is known there."""
    if training.get("push_to_hub") and not (training.get("hub_token") or get_token()):
        raise ConfigError("push_to_hub: true needs a token of the hub: log in there, or give hub_token. Found none.")


_NO_VALUE = "?"
"""What no option can be made of: a builder that looks at it fails, or hands it on."""


def check_optim_args(args: TrainingArguments) -> None:
    """Raises ConfigError for a name in `optim_args` that the optimizer passes over, or for no list of key=value."""
    given = args.optim_args
    if not given or str(args.optim) in OPTIMIZERS:  # whose options were looked at when the arguments were made
        return
    try:
        options = dict(pair.split("=") for pair in str(given).replace(" ", "").split(","))
    except ValueError:
        raise ConfigError(f"optim_args should be key=value pairs with commas between. Found {given!r}.") from None
    idle = [name for name in options if _builds(args, options) == _builds(args, {**options, name: _NO_VALUE})]
    if idle:
        raise ConfigError(
            f"optim_args: the optimizer {getattr(args.optim, 'value', args.optim)} should take what is given. Found "
            f"{', '.join(idle)}, which it passes over. Learning rate, betas, epsilon and weight decay have keys of "
            "their own (learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay)."
        )


def _builds(args: TrainingArguments, options: dict[str, str]) -> Any:
    """What an optimizer would be made with; something unlike all else if the builder refuses the options, or cannot be
    asked without a model or a package."""
    before = args.optim_args
    try:
        args.optim_args = ",".join(f"{name}={value}" for name, value in options.items())
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        return getattr(kind, "__qualname__", kind), settings
    except Exception:  # the builder's own, of any kind; `train` says it in its words
        return object()
    finally:
        args.optim_args = before
