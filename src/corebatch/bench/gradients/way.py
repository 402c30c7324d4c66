"""A way of scoring, and what a measurement supposes about the run around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from corebatch.batch.strategies import STRATEGIES, Full, Strategy, make_strategy
from corebatch.errors import ConfigError
from corebatch.options import hint

DEFAULT_AGE = 50


@dataclass(frozen=True, slots=True)
class Way:
    """A way of scoring (`coreset.scoring`), and what a measurement supposes about the run around it.

    In a run an example is known once it has been visited; how many are, and how old their features, depends on the
    epoch. Here both are said. `every` is measured at a step between two scorings, and its step that scores is not.

    Attributes:
        name: full, window, first_blocks, every, remembered, two_phase or none.
        options: those of the strategy, and where features are remembered:
            age: how many optimizer steps ago they were computed (remembered, and two_phase with a remembered proxy:
                50; every: half of `steps`, rounded down).
            known: the share of the population that is remembered, above 0 and at most 1 (default); which examples is
                drawn. The others are guessed.
            visits, cost (remembered): features were scored for this purpose, once in so many visits of an example, or
                at so many forwards a visit (s itself). Without either they come from the backward of training and
                cost nothing.
    """

    name: str = Full.way
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The block `coreset.scoring`."""
        supposed = STRATEGIES[self.name].supposed
        return {"way": self.name, **{key: value for key, value in self.options.items() if key not in supposed}}

    @property
    def strategy(self) -> Strategy:
        """The strategy with its options."""
        return make_strategy(self.settings)

    @property
    def age(self) -> int | None:
        """How old remembered features are, in optimizer steps; None where nothing is remembered."""
        strategy = self.strategy
        if not strategy.remembers:
            return None
        default = DEFAULT_AGE if strategy.period is None else strategy.period // 2
        return int(self.options.get("age", default))

    @property
    def known(self) -> float:
        """The share of the population that is remembered."""
        return float(self.options.get("known", 1.0))

    def price(self, scored: float = 1.0) -> float:
        """Forwards for scoring, by the measured price of one; see `Strategy.price`."""
        return self.strategy.price(self.options, scored)

    def check(self) -> None:
        """Raises ConfigError for an unknown way or option, or a value out of range."""
        known = [way for way, kind in STRATEGIES.items() if not kind.stands_for_another]
        if self.name not in known:
            raise ConfigError(
                f"A way of scoring should be one of {', '.join(known)}. Found {self.name!r}.{hint(self.name, known)}"
            )
        allowed = (*STRATEGIES[self.name].step_options, *STRATEGIES[self.name].supposed)
        for key in self.options:
            if key not in allowed:
                raise ConfigError(
                    f"The way of scoring {self.name!r} takes {', '.join(allowed) or 'no options'} here. "
                    f"Found {key!r}.{hint(key, allowed)}"
                )
        remembers = self.strategy.remembers
        for key in ("age", "known"):
            if key in self.options and not remembers:
                raise ConfigError(f"{key} goes with a proxy that is remembered. Found proxy 'tokens'.")
        self._number("age", 0, whole=True)
        self._number("visits", 1)
        self._number("cost", 0)
        self._number("known", 0, most=1)
        if self.options.get("known") == 0:
            raise ConfigError("known should be above 0: with nothing in the memory write '@ none'. Found 0.")
        if "visits" in self.options and "cost" in self.options:
            raise ConfigError("remembered takes visits or cost, two ways to say what features cost. Found both.")

    def _number(self, key: str, least: float, *, most: float = math.inf, whole: bool = False) -> None:
        value = self.options.get(key, least)
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most or value == math.inf:
            what = "an integer" if whole else "a number"
            limit = f" and at most {most}" if most < math.inf else ""
            raise ConfigError(f"{key} should be {what} of at least {least}{limit}. Found {value!r}.")
