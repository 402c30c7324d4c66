"""In which range a number of the config should lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from corebatch.errors import ConfigError


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
