"""Where the noise of the gradient can be measured while training, and what asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from corebatch.batch.followed import POOL, followed
from corebatch.batch.strategies import Unscored
from corebatch.errors import ConfigError
from corebatch.selectors import Selector
from corebatch.selectors.importance import Importance
from corebatch.selectors.random import Random
from corebatch.trainer.auto import AUTO, is_auto
from corebatch.trainer.engine import sharded
from corebatch.trainer.in_backward import updates_in_backward

EVERY = 10
"""Steps from one measurement to the next, where it is left to us."""
FEWEST, FEWEST_SORTED = 2, 8
"""Micro-batches: of a step of rows in random order, and of each rank's rows that are sorted by length, of which the
signal comes out too small by the less the more there are: at four micro-batches of 256 rows the scale of a Llama of a
million parameters was 30 % off, at eight 6 % (docs/methods/noise.md)."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """Whether the noise of the gradient is measured; `CoresetConfig` has it.

    Attributes:
        noise_scale: see `corebatch.trainer.CoresetConfig`.
    """

    noise_scale: bool | int | str = AUTO

    def check_noise_scale(self) -> None:
        """Raises ConfigError unless it is true, false, auto or a number of steps."""
        value = self.noise_scale
        if not (isinstance(value, bool) or is_auto(value) or (isinstance(value, int) and value > 0)):
            raise ConfigError(
                f"coreset.noise_scale should be true, false, auto or a number of steps of at least 1. Found {value!r}."
            )

    @property
    def asks_for_noise(self) -> bool:
        """Whether it has to be measured, and not only where it can be."""
        return not is_auto(self.noise_scale) and self.noise_scale is not False


def check_noise(trainer: Any) -> None:
    """Raises ConfigError where noise is asked for that cannot be measured."""
    coreset = trainer.coreset
    if coreset.asks_for_noise and not coreset.track_error and (found := why_not(trainer)) is not None:
        raise ConfigError(
            f"coreset.noise_scale {str(coreset.noise_scale).lower()} measures the gradient's noise by micro-batches "
            f"of a step, whose rows are independent. Found {found}. Leave it out{or_a_number(trainer)}."
        )


def why_not(trainer: Any) -> str | None:
    """Why the noise of the gradient cannot be measured, in words; None if it can."""
    coreset = trainer.coreset
    if (engine := sharded(trainer)) is not None:
        return f"{engine}, which divides gradients over ranks"
    if trainer.model is not None and (moved := updates_in_backward(trainer)) is not None:
        return f"{moved}, which leaves no gradient of the whole step"
    if coreset.by_length is not None:
        return "coreset.by_length, whose steps have rows of one length each"
    if coreset.pool_factor > 1 and not random_every(trainer) and (found := _fixed(trainer) or _joint(trainer)):
        return f"{found}, which chooses rows jointly (coreset.track_error tells it by those drawn)"
    count = trainer.args.gradient_accumulation_steps
    if is_sorted(coreset):
        if coreset.cut.most is None and count < FEWEST_SORTED:
            return (
                f"{count} micro-batches of a rank, sorted by length, of which it takes {FEWEST_SORTED} (or {FEWEST} "
                "with coreset.micro_batches plain)"
            )
    elif count * trainer.accelerator.num_processes < FEWEST:
        return f"{count} micro-batches a step, of which it takes {FEWEST}"
    return None


def is_sorted(coreset: Any) -> bool:
    """Whether a step's micro-batches have rows of like lengths."""
    return bool(coreset.cut.by != "plain")


def _fixed(trainer: Any) -> str | None:
    """What makes rows depend on each other at every step, so that none can have its rows drawn at random."""
    coreset, run = trainer.coreset, trainer._run
    way = run.scoring.strategy.way
    for bad, found in (
        (coreset.small_sources is not None, "coreset.small_sources"),
        (coreset.replay is not None, "coreset.replay"),
        (way in ("every", "remembered", "two_phase"), f"coreset.scoring {way}"),
    ):
        if bad:
            return found
    return None


def _joint(trainer: Any) -> str | None:
    """What makes the rows that are chosen of a pool depend on each other."""
    selector: Selector = trainer._run.method.selector
    if trainer.coreset.feedback is not None:
        return f"coreset.feedback {trainer.coreset.feedback}"
    if not isinstance(selector, Random | Importance) or getattr(selector, "calibrate", False):
        return f"selector {selector.name}"
    return None


def can_draw(trainer: Any) -> bool:
    """Whether rows are chosen jointly, and a step could draw its rows at random in their place: all rows are chosen
    together, and what the choice follows is the pool."""
    method = trainer._run.method
    chosen = trainer.coreset.pool_factor > 1 and trainer._run.scoring.strategy.way != Unscored.way
    return chosen and _fixed(trainer) is None and _joint(trainer) is not None and followed(method) == POOL


def random_every(trainer: Any) -> int:
    """At every so-many-th step rows are drawn at random; 0: never. A number asks for it, 1 for another method."""
    every = trainer.coreset.noise_scale
    given = isinstance(every, int) and every > 1  # true is 1
    return every if given and not trainer.coreset.track_error and can_draw(trainer) else 0


def or_a_number(trainer: Any) -> str:
    """What may be given in place of every step, or of `track_error`: the end of a sentence."""
    if random_every(trainer) or not can_draw(trainer):
        return ""
    return (
        ", or give coreset.noise_scale a number of steps from 2 on, at every so-many-th of which rows are drawn at "
        "random in place of being chosen"
    )
