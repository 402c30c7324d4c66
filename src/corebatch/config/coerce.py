"""A value of the config as one of the type that its key has, and in which range a number should lie."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from corebatch.errors import ConfigError
from corebatch.options import hint


def coerce(value: Any, annotation: Any, key: str) -> Any:
    """A value of the annotated type; numbers that YAML reads as text, such as 5e-4, become numbers. Raises ConfigError:
    the value is of another type; the key is named."""
    kinds = members(annotation)
    if value is None or Any in kinds:
        return value
    if isinstance(value, str) and not any(kind in kinds for kind in (str, dict, list)):
        for kind in (int, float):
            if kind in kinds:
                try:
                    value = kind(value)
                    break
                except ValueError:
                    continue
    literal = [kind for kind in kinds if not isinstance(kind, type)]
    if value in literal:
        return value
    simple = [kind for kind in kinds if kind in _NAMES]
    if simple and len(simple) + len(literal) == len([kind for kind in kinds if kind is not type(None)]):
        fits = any(
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            for kind in simple + ([int] if float in simple else [])
        )
        if not fits:
            wanted = " or ".join([_NAMES[kind] for kind in simple] + [repr(kind) for kind in literal])
            raise ConfigError(f"{key} should be {wanted}. Found {found_value(value)}.")
    elif literal and not simple:
        raise ConfigError(f"{key} should be one of {', '.join(map(repr, literal))}. Found {found_value(value)}.")
    return value


_NAMES = {bool: "bool", int: "int", float: "float", str: "str", list: "a list", dict: "a block of keys"}


def found_value(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = shown(value) if number else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union, literals as their values, generic types as their origins."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in members(part)]
    if origin is Literal:
        return list(typing.get_args(annotation))
    return [origin or annotation]


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, both included unless `open_low` or `open_high`; or `also`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: float | None = None

    def holds(self, number: float) -> bool:
        """False for NaN, and for infinity."""
        if self.also is not None and number == self.also:
            return True
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below and number != math.inf

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.open_low else f"at least {self.low:,}"
        high = f"below {self.high:,}" if self.open_high else f"at most {self.high:,}"
        text = f"{low} and {'finite' if self.high == math.inf else high}"
        return text if self.also is None else f"{text}, or {self.also:,}"


_ROWS = Range(1, 1_000_000)
_STEPS = Range(0, 10**9)
_SEED = Range(0, 2**32 - 1)
_PART = Range(0, 1, open_high=True)

RANGES: dict[str, Range] = {
    "lora_r": Range(1, 100_000),
    "lora_alpha": Range(0, open_low=True),
    "lora_dropout": _PART,
    "max_length": Range(2, 2**31 - 1),
    "dataset_num_proc": Range(1, 1024),
    "per_device_train_batch_size": _ROWS,
    "per_device_eval_batch_size": _ROWS,
    "gradient_accumulation_steps": _ROWS,
    "eval_accumulation_steps": _ROWS,
    "learning_rate": Range(0),
    "weight_decay": Range(0),
    "adam_beta1": _PART,
    "adam_beta2": _PART,
    "adam_epsilon": Range(0),
    "max_grad_norm": Range(0),
    "label_smoothing_factor": Range(0, 1),
    "neftune_noise_alpha": Range(0),
    "max_steps": Range(1, 10**9, also=-1),
    "num_train_epochs": Range(0, 1_000_000, open_low=True),
    "warmup_steps": _STEPS,
    "warmup_ratio": Range(0, 1),
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_delay": _STEPS,
    "save_total_limit": Range(0, 10**9),
    "torch_empty_cache_steps": Range(1, 10**9),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 100_000),
    "ddp_timeout": Range(1, 10**9),
    "ddp_bucket_cap_mb": Range(1, 1_000_000),
    "local_rank": Range(-1, 1_000_000),
}
ANY = Range(-(2.0**53), 2.0**53)
"""Of a number that is not named above."""


def check_number(key: str, value: Any) -> None:
    """Raises ConfigError if the value is a number outside of the key's range, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    wanted = RANGES.get(key, ANY)
    if not wanted.holds(value):
        raise ConfigError(f"{key} should be {wanted}. Found {shown(value)}.")


def shown(value: float) -> str:
    """The number, or of one with many digits how many it has."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return repr(value)


def block_of(values: Any, kind: type, where: str) -> dict[str, Any]:
    """The keys of a block that a dataclass has. Raises ConfigError: no block, or another key."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} should be a block of keys and values. Found {values!r}.")
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where} has the keys {', '.join(known)}. Found {key!r}.{hint(str(key), known)}")
    return dict(values)
