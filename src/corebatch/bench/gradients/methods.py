"""Methods as text, "last_layer(num_blocks=1) x pivotal @ window(tokens=64)": a scorer, a selector, a way of scoring.

What such a text has no place for (normalise, sparsify, small sources, the loss's unit, a recipe) is said by a name and
a `coreset:` block as in a config file: `{name: colm, coreset: {recipe: colm}}`, or as text `colm={recipe: colm}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from corebatch.batch.strategies import STRATEGIES, Auto, Full, Strategy, make_strategy
from corebatch.errors import ConfigError
from corebatch.options import hint
from corebatch.scoring import LossUnit, Scorer, make_scorer
from corebatch.selectors import Selector, make_selector
from corebatch.trainer.config import CoresetConfig

OTHERS = ("normalise", "sparsify", "small_sources", "loss")
"""Fields of CoresetConfig that a method has beside scorer, selector and scoring."""

PASSED_OVER = ("pool_factor", "seed", "padding_free")
"""Fields that say nothing here: sizes are the measurement's, as its seed is, and nothing is trained."""

DEFAULT_AGE = 50
_POOL_FACTOR = 2**20  # sizes are not known here, so the setting that `share` is checked against is out of its way


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


@dataclass(frozen=True, slots=True)
class Pair:
    """A scorer and a selector with their options, the way of scoring, and what else makes a method.

    Attributes:
        others: those of OTHERS that differ from CoresetConfig's defaults.
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
        """The method as a `coreset:` block that is read as this pair."""
        scoring = {"way": self.way.name, **self.way.options} if self.way.options else self.way.name
        options = {"scorer_options": self.scorer_options, "selector_options": self.selector_options}
        given = {name: dict(value) for name, value in options.items() if value}
        return {"scorer": self.scorer, "selector": self.selector, **given, "scoring": scoring, **self.others}

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
        if self.label is not None:
            return self.label
        way = "" if self.way == Way() else f" @ {self.scoring_text}"
        others = "".join(f", {key} {value}" for key, value in self.others.items())
        return f"{self.scoring} x {_call(self.selector, self.selector_options)}{way}{others}"

    @property
    def forward(self) -> str:
        """What forwards compute the features: pairs that share it share them. Ways that spare forwards, and do not
        change them, share those of full."""
        return f"{self.scoring} @ {self.scoring_text if self.way.strategy.own_forward else Full.way}{self._unit}"

    @property
    def remembered(self) -> str | None:
        """What is in the memory: pairs that share it share the memory; None for a way without one."""
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
            **self.others,
        )


def parse_pairs(methods: Iterable[str | Mapping[str, Any]]) -> list[Pair]:
    """Each by `parse_pair`.

    Raises:
        ConfigError: as there, or two methods of one name.
    """
    pairs: dict[str, Pair] = {}
    for method in methods:
        pair = parse_pair(method)
        if pairs.setdefault(pair.name, pair) != pair:
            raise ConfigError(f"Methods should have names of their own. Found {pair.name!r} twice.")
    return list(pairs.values())


def parse_pair(method: str | Mapping[str, Any]) -> Pair:
    """From text or a mapping.

    Args:
        method: "scorer(option=value, ...) x selector(option=value, ...) @ way(option=value, ...)", without "@" the way
            is full; or {name, coreset: {...}} with any block that a config file may have (`recipe` too), as text
            "name={...}". The block's `scoring` is a way with the options that may stand after "@"; "auto" is full.
            `pool_factor`, `seed` and `padding_free` play no part.

    Raises:
        ConfigError: another form, an unknown name or option, or a combination that a trainer refuses.
    """
    if isinstance(method, str):
        named = re.fullmatch(r"([^={(]+)=\s*(\{.*\})\s*", method, flags=re.DOTALL)
        return _parse_text(method) if named is None else _from_block(named[1].strip(), _yaml(named[2], named[1]))
    if not isinstance(method, Mapping):
        raise ConfigError(f"A method should be text or a mapping of name and coreset. Found {method!r}.")
    for key in method:
        if key not in ("name", "coreset"):
            raise ConfigError(
                f"A method has the keys name and coreset. Found {key!r}.{hint(str(key), ('name', 'coreset'))}"
            )
    name = method.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"A method should have a name. Found {name!r}.")
    return _from_block(name.strip(), method["coreset"]) if "coreset" in method else _parse_text(name)


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The method {name!r} should be YAML after the =. Found {text!r}: {error}") from error


def _from_block(name: str, block: Any) -> Pair:
    """The pair that a `coreset:` block stands for."""
    if not isinstance(block, Mapping):
        raise ConfigError(f"The method {name!r} should have a block of keys and values. Found {block!r}.")
    if "source_column" in block:
        raise ConfigError(
            f"The method {name!r} sees the sources that all methods see, those of the config's own "
            f"coreset.source_column. Found source_column {block['source_column']!r}."
        )
    kept = {key: value for key, value in block.items() if key not in (*PASSED_OVER, "scoring")}
    settings = CoresetConfig.from_dict({**kept, "pool_factor": _POOL_FACTOR})
    if not isinstance(settings.scorer, str) or not isinstance(settings.selector, str):
        raise ConfigError(f"The method {name!r} should name its scorer and selector. Found {settings.to_dict()}.")
    plain = CoresetConfig()
    others = {key: getattr(settings, key) for key in OTHERS if getattr(settings, key) != getattr(plain, key)}
    pair = Pair(
        settings.scorer,
        settings.selector,
        dict(settings.scorer_options),
        dict(settings.selector_options),
        _way(block.get("scoring", "full")),
        others,
        name,
    )
    pair.way.check()
    pair.coreset()
    return pair


def _way(scoring: Any) -> Way:
    options = {"way": scoring} if isinstance(scoring, str) else scoring
    if not isinstance(options, Mapping) or not isinstance(options.get("way"), str):
        raise ConfigError(f"scoring should be a way, or a block with the key way. Found {scoring!r}.")
    name = options["way"]
    return Way(Full.way if name == Auto.way else name, {key: value for key, value in options.items() if key != "way"})


def _parse_text(text: str) -> Pair:
    method, at, way = text.partition("@")
    parts = re.split(r"\s+x\s+", method.strip())
    if len(parts) != 2:
        raise ConfigError(
            "A pair should look like 'last_layer(num_blocks=1) x pivotal', or with a way of scoring "
            "'last_layer x cube @ window(tokens=64)', or be a name with a coreset block, 'colm={recipe: colm}'. "
            f"Found {text!r}."
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
    "last_layer(num_blocks=3) x cube",
    "last_layer(num_blocks=3) x balanced",
    "last_layer(num_blocks=3) x calibrated",
    "last_layer(num_blocks=3) x cube @ window(tokens=32)",
    "last_layer(num_blocks=3) x cube @ first_blocks(blocks=2)",
    "last_layer(num_blocks=3) x cube @ two_phase",
    "last_layer(num_blocks=3) x cube @ every(steps=4)",
    "last_layer(num_blocks=3) x cube @ remembered(age=50)",
    "last_layer(num_blocks=3) x cube @ remembered(age=50, known=0.5)",
    "last_layer(num_blocks=3) x cube @ none",
)
"""What `corebatch bench gradients` measures unless told otherwise; ways of scoring with the default selector."""
