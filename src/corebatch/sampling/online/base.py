"""What every online method is: shares of sources that follow what is measured of them while training.

The shares are an objective: source s is to make up `shares[s]` of what a step claims, whichever rows it is trained on.
All arithmetic is in float64 on the CPU and sees what every rank sees alike, so that ranks and resumed runs agree.

Shape suffixes: S sources, P feature columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.options import is_number, near

FLOOR = 0.05
"""What each source has at least, in equal shares: a source that is not trained has no loss to be judged by."""


class OnlineShares:
    """Shares that are updated in the run. Options are keyword-only arguments of the constructor.

    Args:
        floor: in [0, 1]: every share is mixed with an equal one, (1 - floor) share + floor / S.
        start: "equal" shares, or those that sources have in the "data".

    Attributes:
        name: the key in `ONLINE`.
        kept: the tensors, by attribute, that are its state.
        names: of the sources.
        weights: float64 [S], the shares before `floor`.
    """

    name: ClassVar[str]
    kept: ClassVar[tuple[str, ...]] = ("weights",)
    needs_gradients: ClassVar[bool] = False
    """Whether it follows `observe_gradients`, not `observe`."""

    def __init__(self, floor: float, start: str = "equal") -> None:
        self.floor, self.start = check_number("floor", floor, 0, 1), start
        if start not in ("equal", "data"):
            raise ConfigError(f"start should be equal or data. Found {start!r}.")
        self.names: tuple[str, ...] = ()
        self.weights = self.initial = torch.zeros(0, dtype=torch.float64)

    @property
    def needs_held_out(self) -> bool:
        """Whether the losses of `observe` are held-out ones, and not those of what a step trains."""
        return False

    @property
    def measured(self) -> tuple[str, ...]:
        """The sources whose losses have to be there where they are held-out ones."""
        return self.names

    @property
    def due(self) -> int | None:
        """The number of optimizer steps after which held-out losses are wanted next; None: none are."""
        return None

    @final
    def begin(self, names: Sequence[str], prior: Tensor, seed: int = 0) -> None:
        """At the run's first step.

        Args:
            names: of the S sources.
            prior: [S], what each has of the data's trained tokens, or in proportion to it.
            seed: of all randomness.

        Raises:
            ConfigError: fewer than two sources, or options that name others or do not go with so many.
        """
        if len(names) < 2:
            raise ConfigError(f"Online shares need two sources or more. Found {', '.join(names) or 'none'}.")
        prior = self._column("prior", prior, len(names))
        if not bool((prior >= 0).all()) or not float(prior.sum()) > 0:
            raise InputError(f"`prior` should be shares of the data, not negative. Found {prior.tolist()}.")
        self.names, self.seed = tuple(names), seed
        equal = torch.full((len(names),), 1 / len(names), dtype=torch.float64)
        self.initial = prior / prior.sum() if self.start == "data" else equal
        self.weights = self.initial.clone()
        self._begin()

    @property
    def shares(self) -> Tensor:
        """Float64 [S] that sums to 1: what each source makes up of the next step's objective."""
        return (1 - self.floor) * self.weights + self.floor / len(self.weights)

    @property
    def average(self) -> Tensor | None:
        """Float64 [S], the mean of the shares so far, where a second run is meant to be trained by it."""
        return None

    @final
    def observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        """Takes losses of sources.

        Args:
            losses: [S], mean token loss of each; NaN where none of its tokens was trained.
            tokens: [S], trained tokens by which they were measured.
            step: optimizer steps made, at which they are known: after the step that trained them, from 1.

        Raises:
            NonFiniteError: a loss is infinite, or a held-out one NaN.
            InputError: another length.
        """
        losses, tokens = (self._column(name, given) for name, given in (("losses", losses), ("tokens", tokens)))
        bad = [name for name, loss in zip(self.names, losses.tolist(), strict=True) if math.isinf(loss)]
        if self.needs_held_out:
            bad = [name for name in self.measured if not math.isfinite(losses[self.names.index(name)])]
        if bad:
            raise NonFiniteError(f"At step {step}, losses of sources should be finite. Found others of {bad}.")
        self._observe(losses, tokens, step)

    def observe_gradients(self, sums: Tensor, squares: Tensor, rows: Tensor, tokens: Tensor) -> None:
        """Takes gradients of sources; nothing where `needs_gradients` is not set.

        Args:
            sums: [S, P], the sum over a source's rows of each one's gradient of its summed token losses.
            squares: [S], the sum of these gradients' squared lengths.
            rows: LongTensor [S], how many they are.
            tokens: LongTensor [S], their trained tokens.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {key: getattr(self, key).clone() for key in self.kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint, after `begin`."""
        for key in self.kept:
            setattr(self, key, state[key].clone())

    def _begin(self) -> None:
        """Checks options against the sources, and makes the state."""

    def _observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        """Takes losses that were checked, float64 [S]."""

    def _places(self, names: Iterable[str], what: str) -> list[int]:
        """Where sources are among all. Raises ConfigError for one that does not exist."""
        known = {name: place for place, name in enumerate(self.names)}
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{what} should name sources: {', '.join(self.names)}. Found {name!r}{near(name, known)}."
                )
        return [known[name] for name in names]

    def _column(self, name: str, given: Tensor, count: int | None = None) -> Tensor:
        count = len(self.names) if count is None else count
        if tuple(given.shape) != (count,):
            raise InputError(f"`{name}` should have shape [{count}], one a source. Found {tuple(given.shape)}.")
        return given.detach().double().cpu()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(floor={self.floor!r}, start={self.start!r})"


class MultiplicativeShares(OnlineShares):
    """Shares that each update multiplies by exp(gain), normalises, and mixes with equal ones.

        w <- (1 - c) w exp(gain) / sum_s w_s exp(gain_s) + c / S

    Args:
        smoothing: c.
    """

    kept: ClassVar[tuple[str, ...]] = ("weights", "total", "updates")

    def __init__(self, floor: float, start: str, smoothing: float) -> None:
        super().__init__(floor, start)
        self.smoothing = check_number("smoothing", smoothing, 0, 1)

    def _begin(self) -> None:
        self.total, self.updates = torch.zeros_like(self.weights), torch.zeros((), dtype=torch.long)

    def _multiply(self, gains: Tensor) -> None:
        c = self.smoothing
        self.weights = (1 - c) * torch.softmax(self.weights.log() + gains, 0) + c / len(gains)
        self.total, self.updates = self.total + self.shares, self.updates + 1

    @property
    def average(self) -> Tensor | None:
        return self.total / self.updates if int(self.updates) else self.shares


def check_number(what: str, value: object, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """The number. Raises ConfigError unless it is finite and from `low` (`above`: not `low` itself) to `high`."""
    if not is_number(value) or not low <= value <= high or (above and value == low):
        least = f"{'above' if above else 'at least'} {low:g}"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ConfigError(f"{what} should be a number of {least}{most}. Found {value!r}.")
    return float(value)


def numbers_by_name(what: str, value: object) -> dict[str, Any]:
    """A mapping by source, given as it is or as the path of a JSON file. Raises ConfigError: neither."""
    if isinstance(value, str | Path):
        try:
            value, what = json.loads(Path(value).read_text(encoding="utf-8")), f"{what} in {value}"
        except (OSError, ValueError) as error:
            raise ConfigError(f"{what}: {value} should be a JSON file of numbers by source. Found {error}.") from error
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{what} should be numbers by source, or the path of a JSON file. Found {value!r}.")
    return dict(value)


def names_of(what: str, value: object) -> tuple[str, ...]:
    """Names of sources, none given being none. Raises ConfigError: no list of names."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{what} should be a list of sources. Found {value!r}.")
    return tuple(str(name) for name in value)
