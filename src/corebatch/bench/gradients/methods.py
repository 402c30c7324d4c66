"""A method is a `coreset:` block with a name: a scorer, a selector, a way of scoring, and what else makes a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corebatch.batch.strategies import Full
from corebatch.bench.gradients.way import Way
from corebatch.scoring import LossUnit, Scorer, make_scorer
from corebatch.selectors import Selector, make_selector
from corebatch.trainer.config import CoresetConfig

POOL_FACTOR = 2**20
"""Sizes are not known here, so the setting that `share` is checked against is out of its way."""


@dataclass(frozen=True, slots=True)
class Method:
    """A scorer and a selector with their options, the way of scoring, and what else makes a method.

    Attributes:
        others: normalise, sparsify, what is said of sources, feedback and loss, where they differ from CoresetConfig's
            defaults.
        label: a name of one's own; None: the text.
    """

    scorer: str
    selector: str
    scorer_options: dict[str, Any] = field(default_factory=dict)
    selector_options: dict[str, Any] = field(default_factory=dict)
    way: Way = field(default_factory=Way)
    others: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def loss(self) -> LossUnit:
        """What a step minimises."""
        unit: LossUnit = self.others.get("loss", "token_mean")
        return unit

    @property
    def block(self) -> dict[str, Any]:
        """The method as a `coreset:` block that is read as this method."""
        scoring = {"way": self.way.name, **self.way.options} if self.way.options else self.way.name
        options = {"scorer_options": self.scorer_options, "selector_options": self.selector_options}
        given = {name: dict(value) for name, value in options.items() if value}
        return {"scorer": self.scorer, "selector": self.selector, **given, "scoring": scoring, **self.others}

    @property
    def scoring(self) -> str:
        """The scorer with its options."""
        return as_text(self.scorer, self.scorer_options)

    @property
    def scoring_text(self) -> str:
        """The way of scoring with its options."""
        return as_text(self.way.name, self.way.options)

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        way = "" if self.way == Way() else f" @ {self.scoring_text}"
        others = "".join(f", {key} {value}" for key, value in self.others.items())
        return f"{self.scoring} x {as_text(self.selector, self.selector_options)}{way}{others}"

    @property
    def forward(self) -> str:
        """What forwards compute the features: methods that share it share them. Ways that spare forwards, and do not
        change them, share those of full."""
        return f"{self.scoring} @ {self.scoring_text if self.way.strategy.own_forward else Full.way}{self._unit}"

    @property
    def remembered(self) -> str | None:
        """What is in the memory: methods that share it share the memory; None for a way without one."""
        if self.way.age is None:
            return None
        return f"{self.scoring} @ age={self.way.age}, known={self.way.known}{self._unit}"

    @property
    def _unit(self) -> str:
        return "" if self.loss == "token_mean" else f" {self.loss}"

    def build(self) -> tuple[Scorer, Selector]:
        """Raises ConfigError for unknown names and options."""
        return make_scorer(self.scorer, self.scorer_options), make_selector(self.selector, self.selector_options)

    def coreset(self, seed: int = 0, rows: int | None = None) -> CoresetConfig:
        """The trainer's settings that the method stands for.

        Args:
            rows: how many of the longest rows make one scoring forward; None: as the trainer does by default.

        Raises:
            ConfigError: names, options, or a combination that a trainer refuses.
        """
        return CoresetConfig(
            pool_factor=POOL_FACTOR,
            scorer=self.scorer,
            scorer_options=self.scorer_options,
            selector=self.selector,
            selector_options=self.selector_options,
            seed=seed,
            scoring={**self.way.settings, **({} if rows is None else {"rows": rows})},
            **{"feedback": None, **self.others},
        )


def as_text(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options, as methods are written."""
    inner = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({inner})" if inner else name
