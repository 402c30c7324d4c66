"""Named settings: what each changes of the defaults, and settings as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corebatch.errors import ConfigError

RECIPES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "colm": {
        "scorer": "zeroth_order",
        "selector": "facility_location",
        "selector_options": {"metric": "l1"},
        "normalise": "adam",
        "sparsify": "topk",
        "small_sources": "auto",
        "leftovers": "smallest",
        "objective": "examples",
    },
    "following": {
        "scorer": "label_counts",
        "selector": "balanced",
        "selector_options": {"start": "cube"},
        "feedback": 0.99,
    },
}
"""Named settings: what each changes of the defaults."""


def recipe(name: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, of which `settings` replace single ones; `loss` stands for an objective.

    Raises:
        ConfigError: an unknown recipe.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(f"coreset.recipe should be one of {', '.join(RECIPES)}. Found {name!r}.")
    made = {**RECIPES[name], **settings}
    if settings.get("loss", "auto") != "auto" and "objective" not in settings:
        made.pop("objective", None)
    return made


def plain_values(value: Any) -> Any:
    """Plain JSON; an instance as its repr."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain_values(item) for item in value]
    return repr(value)
