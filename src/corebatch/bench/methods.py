"""Methods as text, "last_layer(num_blocks=1) x pivotal @ window(tokens=64)": a scorer, a selector, a way of scoring."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from corebatch._registry import hint
from corebatch.errors import ConfigError
from corebatch.scoring import Scorer, make_scorer
from corebatch.selectors import Selector, make_selector
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.scoring_config import ScoringConfig

SETTINGS: dict[str, tuple[str, ...]] = {
    "full": (),
    "window": ("tokens",),
    "first_blocks": ("blocks",),
    "every": ("steps",),
    "remembered": (),
    "two_phase": ("share", "proxy"),
    "none": (),
}
"""Of each way of scoring, the options of `coreset.scoring` that make a difference to one step."""

MEASURED: dict[str, tuple[str, ...]] = {
    "every": ("age", "known"),
    "remembered": ("age", "known", "visits", "cost"),
    "two_phase": ("age", "known"),
}
"""What a measurement says itself, since it has no run behind it: see `Way`."""

DEFAULT_AGE = 50
_POOL_FACTOR = 2**20  # sizes are not known here, so the setting that `share` is checked against is out of its way


@dataclass(frozen=True, slots=True)
class Way:
    """A way of scoring (`coreset.scoring`), and what a measurement supposes about the run around it.

    In a run an example is known once it has been visited; how many are, and how old their features, depends on the
    epoch. Here both are said. `every` is measured at a step between two scorings, and its step that scores is not.

    Attributes:
        name: full, window, first_blocks, every, remembered, two_phase or none.
        options: those of `ScoringConfig`, and where features are remembered:
            age: how many optimizer steps ago they were computed (remembered, and two_phase with a remembered proxy:
                50; every: half of `steps`, rounded down).
            known: the share of the population that is remembered, above 0 and at most 1 (default); which examples is
                drawn. The others are guessed.
            visits, cost (remembered): features were scored for this purpose, once in so many visits of an example, or
                at so many forwards a visit (s itself). Without either they come from the backward of training and
                cost nothing.
    """

    name: str = "full"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The block `coreset.scoring`."""
        kept = {key: value for key, value in self.options.items() if key not in MEASURED.get(self.name, ())}
        return {"way": self.name, **kept}

    @property
    def age(self) -> int | None:
        """How old remembered features are, in optimizer steps; None where nothing is remembered."""
        if not ScoringConfig.of(self.settings).remembers:
            return None
        default = self.options.get("steps", ScoringConfig.steps) // 2 if self.name == "every" else DEFAULT_AGE
        return int(self.options.get("age", default))

    @property
    def known(self) -> float:
        """The share of the population that is remembered."""
        return float(self.options.get("known", 1.0))

    @property
    def own_forward(self) -> bool:
        """Whether its forwards are other ones than those of full."""
        return self.name in ("window", "first_blocks")

    @property
    def pays(self) -> bool:
        """Whether forwards are run for scoring, by the measured price."""
        return self.name != "none" and (self.name != "remembered" or "visits" in self.options)

    def check(self) -> None:
        """Raises ConfigError for an unknown way or option, or a value out of range."""
        if self.name not in SETTINGS:
            raise ConfigError(
                f"A way of scoring should be one of {', '.join(SETTINGS)}. Found {self.name!r}."
                f"{hint(self.name, SETTINGS)}"
            )
        allowed = (*SETTINGS[self.name], *MEASURED.get(self.name, ()))
        for key in self.options:
            if key not in allowed:
                raise ConfigError(
                    f"The way of scoring {self.name!r} takes {', '.join(allowed) or 'no options'} here. "
                    f"Found {key!r}.{hint(key, allowed)}"
                )
        remembers = ScoringConfig.of(self.settings).remembers
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


@dataclass(frozen=True, slots=True)
class Pair:
    """A scorer and a selector with their options, and the way of scoring."""

    scorer: str
    selector: str
    scorer_options: dict[str, Any] = field(default_factory=dict)
    selector_options: dict[str, Any] = field(default_factory=dict)
    way: Way = field(default_factory=Way)

    @property
    def scoring(self) -> str:
        """The scorer with its options."""
        return _call(self.scorer, self.scorer_options)

    @property
    def scoring_text(self) -> str:
        """The way of scoring with its options."""
        return _call(self.way.name, self.way.options)

    @property
    def name(self) -> str:
        way = "" if self.way == Way() else f" @ {self.scoring_text}"
        return f"{self.scoring} x {_call(self.selector, self.selector_options)}{way}"

    @property
    def forward(self) -> str:
        """What forwards compute the features: pairs that share it share them. Ways that spare forwards, and do not
        change them, share those of full."""
        return f"{self.scoring} @ {self.scoring_text if self.way.own_forward else 'full'}"

    @property
    def remembered(self) -> str | None:
        """What is in the memory: pairs that share it share the memory; None for a way without one."""
        if self.way.age is None:
            return None
        return f"{self.scoring} @ age={self.way.age}, known={self.way.known}"

    def build(self) -> tuple[Scorer, Selector]:
        """Raises ConfigError for unknown names and options."""
        return make_scorer(self.scorer, self.scorer_options), make_selector(self.selector, self.selector_options)

    def coreset(self, seed: int = 0, rows: int | None = None) -> CoresetConfig:
        """The trainer's settings that the pair stands for.

        Args:
            rows: how many of the longest rows make one scoring forward; None: as the trainer does by default.

        Raises:
            ConfigError: names, options, or a combination that a trainer refuses.
        """
        return CoresetConfig(
            pool_factor=_POOL_FACTOR,
            scorer=self.scorer,
            scorer_options=self.scorer_options,
            selector=self.selector,
            selector_options=self.selector_options,
            seed=seed,
            scoring={**self.way.settings, **({} if rows is None else {"rows": rows})},
        )


def parse_pair(text: str) -> Pair:
    """From "scorer(option=value, ...) x selector(option=value, ...) @ way(option=value, ...)"; without "@" the way is
    full.

    Raises:
        ConfigError: another form, an unknown name or option, or a combination that a trainer refuses.
    """
    method, at, way = text.partition("@")
    parts = re.split(r"\s+x\s+", method.strip())
    if len(parts) != 2:
        raise ConfigError(
            "A pair should look like 'last_layer(num_blocks=1) x pivotal', or with a way of scoring "
            f"'last_layer x balanced @ window(tokens=64)'. Found {text!r}."
        )
    (scorer, scorer_options), (selector, selector_options) = (_parse(part) for part in parts)
    pair = Pair(scorer, selector, scorer_options, selector_options, Way(*_parse(way.strip())) if at else Way())
    pair.way.check()
    pair.coreset()
    return pair


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", text)
    if match is None:
        raise ConfigError(f"Expected a name with options in brackets. Found {text!r}.")
    options = {}
    for item in filter(None, (match.group(2) or "").split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"Expected option=value. Found {item.strip()!r} in {text!r}.")
        options[key.strip()] = yaml.safe_load(value)
    return match.group(1), options


def _call(name: str, options: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({inner})" if inner else name


DEFAULT_PAIRS: tuple[str, ...] = (
    "tokens x random",
    "tokens x importance",
    "loss x hard",
    "zeroth_order x facility_location",
    "last_layer(num_blocks=1) x facility_location",
    "last_layer(num_blocks=1) x herding",
    "last_layer(num_blocks=1) x balanced",
    "last_layer(num_blocks=3) x importance",
    "last_layer(num_blocks=3) x pivotal",
    "last_layer(num_blocks=3) x balanced",
    "last_layer(num_blocks=3) x calibrated",
    "last_layer(num_blocks=3) x balanced @ window(tokens=32)",
    "last_layer(num_blocks=3) x balanced @ first_blocks(blocks=2)",
    "last_layer(num_blocks=3) x balanced @ two_phase",
    "last_layer(num_blocks=3) x balanced @ every(steps=4)",
    "last_layer(num_blocks=3) x balanced @ remembered(age=50)",
    "last_layer(num_blocks=3) x balanced @ remembered(age=50, known=0.5)",
    "last_layer(num_blocks=3) x balanced @ none",
)
"""The rows of the tables in docs/selectors.md and docs/measurements.md."""
