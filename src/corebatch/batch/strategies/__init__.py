"""How the pool of a step gets its features: the `scoring:` key of the `coreset:` block.

A new strategy is one file with a subclass of `Strategy`, and one line in `STRATEGIES`; the contract tests find it
there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from corebatch.batch.strategies.auto import Auto
from corebatch.batch.strategies.base import Strategy
from corebatch.batch.strategies.every import Every
from corebatch.batch.strategies.first_blocks import FirstBlocks
from corebatch.batch.strategies.full import Full
from corebatch.batch.strategies.options import SHARED, check_option, option_names
from corebatch.batch.strategies.remembered import Remembered
from corebatch.batch.strategies.two_phase import TwoPhase
from corebatch.batch.strategies.unscored import Unscored
from corebatch.batch.strategies.window import Window
from corebatch.errors import ConfigError
from corebatch.options import hint

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.way: strategy
    for strategy in (
        Auto,
        Full,
        Window,
        FirstBlocks,
        Every,
        Remembered,
        TwoPhase,
        Unscored,
    )
}

__all__ = ["OPTIONS", "STRATEGIES", "Auto", "Full", "Strategy", "Unscored", "make_strategy", "shortest"]


def _options() -> dict[str, dataclasses.Field[Any]]:
    """Each in its place among those of its strategy; what strategies share comes last."""
    names: list[str] = []
    fields = {field.name: field for kind in STRATEGIES.values() for field in dataclasses.fields(kind)}
    for kind in STRATEGIES.values():
        place = len(names)
        for name in option_names(kind):
            if name in SHARED:
                continue
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return {name: fields[name] for name in (*names, *SHARED)}


OPTIONS = _options()
"""The options of all strategies by name."""


def make_strategy(value: Any) -> Strategy:
    """From a way, a mapping with the key `way`, or an instance. An option of another way may stand there if it says
    what is so anyway.

    Raises:
        ConfigError: an unknown way or option, a value out of range, or an option that would do nothing.
    """
    if isinstance(value, Strategy):
        return value
    given = {"way": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"coreset.scoring should be one of {', '.join(STRATEGIES)}, or a block with the key way. Found {value!r}."
        )
    keys = ("way", *OPTIONS)
    for key in given:
        if key not in keys:
            raise ConfigError(f"coreset.scoring has the keys {', '.join(keys)}. Found {key!r}.{hint(str(key), keys)}")
    way = given.get("way", Auto.way)
    if not isinstance(way, str) or way not in STRATEGIES:
        raise ConfigError(
            f"coreset.scoring should be one of {', '.join(STRATEGIES)}. Found {way!r}.{hint(str(way), STRATEGIES)}"
        )
    options: dict[str, Any] = {name: given[name] for name in OPTIONS if name in given}
    for name, option in options.items():
        check_option(OPTIONS[name], option)
    own = option_names(STRATEGIES[way])
    idle = [name for name, option in options.items() if name not in own and option != OPTIONS[name].default]
    if idle:
        takes = [*(name for name in own if name != "rows"), "rows"]
        raise ConfigError(
            f"coreset.scoring {way!r} takes {', '.join(takes)}. Found {', '.join(idle)}, which would do nothing."
        )
    return STRATEGIES[way](**{name: option for name, option in options.items() if name in own})


def shortest(strategy: Strategy) -> str | dict[str, Any]:
    """What `make_strategy` makes it of again: the way alone, or with what differs from the defaults."""
    own = option_names(type(strategy))
    values = {name: getattr(strategy, name) for name in OPTIONS if name in own}
    changed = {name: value for name, value in values.items() if value != OPTIONS[name].default}
    return {"way": strategy.way, **changed} if changed else strategy.way
