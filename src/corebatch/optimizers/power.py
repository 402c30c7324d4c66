"""The Power scheduler: a learning rate that knows neither how long the run is nor how large its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import hint, is_number

POWER = "power"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """By what share of the highest learning rate a step's is multiplied.

        rate(n) = min(highest, rows x a x n^b)        (Power scheduler, arXiv 2408.13359)

    n: tokens that were trained before the step; rows: of a step, over all ranks. The rate rises linearly over the first
    `warmup` steps to what the law gives at their end, and falls linearly to zero over the last share `decay` of `steps`
    from what it gives at their beginning (in the paper the fall is exponential).

    Attributes:
        highest: the learning rate that is never exceeded.
        a, b: of the law; the paper has 4.6 and -0.51 for models under muP.
        tokens_per_step: on average.
    """

    highest: float
    rows: int
    steps: int
    warmup: int = 0
    a: float
    tokens_per_step: float
    b: float = -0.51
    decay: float = 0.1

    def __call__(self, step: float) -> float:
        """In [0, 1], for the step with this number, from 0."""
        falls = self.steps - self.decay * self.steps
        if step < self.warmup:
            return self._law(self.warmup) * step / self.warmup
        if step <= falls or falls >= self.steps:
            return self._law(step)
        return self._law(falls) * max(0.0, (self.steps - step) / (self.steps - falls))

    def _law(self, step: float) -> float:
        tokens = step * self.tokens_per_step
        if tokens <= 0 or self.highest <= 0:
            return 1.0
        return min(1.0, self.rows * self.a / self.highest * math.exp(self.b * math.log(tokens)))


_OPTIONS: dict[str, tuple[Callable[[float], bool], str]] = {
    "a": (lambda x: x > 0, "a number above 0"),
    "b": (lambda x: x < 0, "a number below 0"),
    "tokens_per_step": (lambda x: x > 0, "a number above 0"),
    "decay": (lambda x: 0 <= x <= 1, "a number in [0, 1]"),
}


def check_power(args: Any) -> dict[str, float]:
    """The options in `lr_scheduler_kwargs`. Raises ConfigError: one that there is not, or out of range; no `a`."""
    given = args.lr_scheduler_kwargs or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"lr_scheduler_kwargs should be a block of keys. Found {given!r}.")
    for key, value in given.items():
        if key not in _OPTIONS:
            raise ConfigError(
                f"lr_scheduler_kwargs of the schedule power has the keys {', '.join(_OPTIONS)}. Found "
                f"{key!r}.{hint(str(key), _OPTIONS)}"
            )
        holds, wanted = _OPTIONS[key]
        if not is_number(value) or not holds(value):
            raise ConfigError(f"lr_scheduler_kwargs.{key} should be {wanted}. Found {value!r}.")
    if "a" not in given:
        raise ConfigError(
            "The schedule power needs lr_scheduler_kwargs.a, which is of a family of models: the rate is at most the "
            "rows of a step x a x tokens^b, and learning_rate. For a fall that begins after n tokens give a = "
            "learning_rate / (rows x n^b). Found none."
        )
    return dict(given)
