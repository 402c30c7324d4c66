"""Methods as text, "last_layer(num_blocks=1) x pivotal @ window(tokens=64)": a scorer, a selector, a way of scoring.

What such a text has no place for (normalise, sparsify, small sources, the loss's unit, a recipe) is said by a name and
a `coreset:` block as in a config file: `{name: colm, coreset: {recipe: colm}}`, or as text `colm={recipe: colm}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from corebatch.batch.strategies import Auto, Full
from corebatch.bench.gradients.methods import POOL_FACTOR, Method
from corebatch.bench.gradients.way import Way
from corebatch.errors import ConfigError
from corebatch.options import hint
from corebatch.trainer.config import CoresetConfig

OTHERS = ("normalise", "sparsify", "small_sources", "small_sources_cap", "leftovers", "feedback", "loss")
"""Fields of CoresetConfig that a method has beside scorer, selector and scoring."""

PASSED_OVER = ("pool_factor", "seed", "padding_free")
"""Fields that say nothing here: sizes are the measurement's, as its seed is, and nothing is trained."""

DEFAULT_METHODS: tuple[str, ...] = (
    "tokens x random",
    "tokens x importance",
    "loss x hard",
    "zeroth_order x facility_location",
    "last_layer(num_blocks=3) x facility_location",
    "last_layer(num_blocks=3) x importance",
    "last_layer(num_blocks=3) x pivotal",
    "last_layer(num_blocks=3) x cube",
    "last_layer(num_blocks=3) x balanced",
    "last_layer(num_blocks=3) x calibrated",
    "last_layer(num_blocks=3) x cube @ first_blocks(blocks=2)",
    "last_layer(num_blocks=3) x cube @ two_phase",
    "last_layer(num_blocks=3) x cube @ remembered(age=50)",
    "last_layer(num_blocks=3) x cube @ remembered(age=50, known=0.5)",
    "last_layer(num_blocks=3) x cube @ none",
)
"""What `corebatch bench gradients` measures unless told otherwise; ways of scoring with the default selector."""


def parse_methods(given: Iterable[str | Mapping[str, Any]]) -> list[Method]:
    """Each by `parse_method`.

    Raises:
        ConfigError: as there, or two methods of one name.
    """
    methods: dict[str, Method] = {}
    for each in given:
        method = parse_method(each)
        if methods.setdefault(method.name, method) != method:
            raise ConfigError(f"Methods should have names of their own. Found {method.name!r} twice.")
    return list(methods.values())


def parse_method(given: str | Mapping[str, Any]) -> Method:
    """From text or a mapping.

    Args:
        given: "scorer(option=value, ...) x selector(option=value, ...) @ way(option=value, ...)", without "@" the way
            is full; or {name, coreset: {...}} with any block that a config file may have (`recipe` too), as text
            "name={...}". The block's `scoring` is a way with the options that may stand after "@"; "auto" is full,
            since no run around it would teach any features. `pool_factor`, `seed` and `padding_free` play no part.

    Raises:
        ConfigError: another form, an unknown name or option, or a combination that a trainer refuses.
    """
    if isinstance(given, str):
        named = re.fullmatch(r"([^={(]+)=\s*(\{.*\})\s*", given, flags=re.DOTALL)
        return _parse_text(given) if named is None else _from_block(named[1].strip(), _yaml(named[2], named[1]))
    if not isinstance(given, Mapping):
        raise ConfigError(f"A method should be text or a mapping of name and coreset. Found {given!r}.")
    for key in given:
        if key not in ("name", "coreset"):
            raise ConfigError(
                f"A method has the keys name and coreset. Found {key!r}.{hint(str(key), ('name', 'coreset'))}"
            )
    name = given.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"A method should have a name. Found {name!r}.")
    return _from_block(name.strip(), given["coreset"]) if "coreset" in given else _parse_text(name)


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The method {name!r} should be YAML after the =. Found {text!r}: {error}") from error


def _from_block(name: str, block: Any) -> Method:
    """The method that a `coreset:` block stands for."""
    if not isinstance(block, Mapping):
        raise ConfigError(f"The method {name!r} should have a block of keys and values. Found {block!r}.")
    if "source_column" in block:
        raise ConfigError(
            f"The method {name!r} sees the sources that all methods see, those of the config's own "
            f"coreset.source_column. Found source_column {block['source_column']!r}."
        )
    kept = {key: value for key, value in block.items() if key not in (*PASSED_OVER, "scoring")}
    given = block.get("scoring", Auto.way)
    way = _way(given)
    # What is measured of a way has options of its own; which scorer and selector "auto" stands for goes by its name.
    named = given if isinstance(given, str) else given["way"]
    settings = CoresetConfig.from_dict({**kept, "pool_factor": POOL_FACTOR, "scoring": named})
    if not isinstance(settings.scorer, str) or not isinstance(settings.selector, str):
        raise ConfigError(f"The method {name!r} should name its scorer and selector. Found {settings.to_dict()}.")
    plain = CoresetConfig(feedback=None)
    others = {key: getattr(settings, key) for key in OTHERS if getattr(settings, key) != getattr(plain, key)}
    method = Method(
        settings.scorer,
        settings.selector,
        dict(settings.scorer_options),
        dict(settings.selector_options),
        way,
        others,
        name,
    )
    method.way.check()
    method.coreset()
    return method


def _way(scoring: Any) -> Way:
    options = {"way": scoring} if isinstance(scoring, str) else scoring
    if not isinstance(options, Mapping) or not isinstance(options.get("way"), str):
        raise ConfigError(f"scoring should be a way, or a block with the key way. Found {scoring!r}.")
    name = options["way"]
    return Way(Full.way if name == Auto.way else name, {key: value for key, value in options.items() if key != "way"})


def _parse_text(text: str) -> Method:
    both, at, way = text.partition("@")
    parts = re.split(r"\s+x\s+", both.strip())
    if len(parts) != 2:
        raise ConfigError(
            "A pair should look like 'last_layer(num_blocks=1) x pivotal', or with a way of scoring "
            "'last_layer x cube @ window(tokens=64)', or be a name with a coreset block, 'colm={recipe: colm}'. "
            f"Found {text!r}."
        )
    (scorer, scorer_options), (selector, selector_options) = (_parse(part) for part in parts)
    method = Method(scorer, selector, scorer_options, selector_options, Way(*_parse(way.strip())) if at else Way())
    method.way.check()
    method.coreset()
    return method


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
