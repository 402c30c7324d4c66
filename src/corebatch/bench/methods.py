"""Pairs of a scorer and a selector, as text: "last_layer(num_blocks=1) x pivotal"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from corebatch.errors import ConfigError
from corebatch.scoring import Scorer, make_scorer
from corebatch.selectors import Selector, make_selector


@dataclass(frozen=True, slots=True)
class Pair:
    """A scorer and a selector with their options."""

    scorer: str
    selector: str
    scorer_options: dict[str, Any] = field(default_factory=dict)
    selector_options: dict[str, Any] = field(default_factory=dict)

    @property
    def scoring(self) -> str:
        """The scorer with its options: pairs that share it share its scores."""
        return _call(self.scorer, self.scorer_options)

    @property
    def name(self) -> str:
        return f"{self.scoring} x {_call(self.selector, self.selector_options)}"

    def build(self) -> tuple[Scorer, Selector]:
        """Raises ConfigError for unknown names and options."""
        return make_scorer(self.scorer, self.scorer_options), make_selector(self.selector, self.selector_options)


def parse_pair(text: str) -> Pair:
    """From "scorer(option=value, ...) x selector(option=value, ...)".

    Raises:
        ConfigError: another form, or an unknown name or option.
    """
    parts = re.split(r"\s+x\s+", text.strip())
    if len(parts) != 2:
        raise ConfigError(f"A pair should look like 'last_layer(num_blocks=1) x pivotal'. Found {text!r}.")
    (scorer, scorer_options), (selector, selector_options) = (_parse(part) for part in parts)
    pair = Pair(scorer, selector, scorer_options, selector_options)
    pair.build()
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


def _call(name: str, options: dict[str, Any]) -> str:
    inner = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({inner})" if inner else name


DEFAULT_PAIRS: tuple[str, ...] = (
    "tokens x random",
    "tokens x importance",
    "loss x hard",
    "zeroth_order x facility_location",
    "last_layer(num_blocks=1) x facility_location",
    "last_layer(num_blocks=1) x herding",
    "last_layer(num_blocks=1) x importance",
    "last_layer(num_blocks=1) x pivotal",
    "last_layer(num_blocks=1) x balanced",
    "last_layer(num_blocks=1) x calibrated",
    "last_layer x importance",
    "last_layer x pivotal",
    "last_layer x balanced",
    "last_layer x calibrated",
)
"""The rows of the table in docs/selectors.md."""
