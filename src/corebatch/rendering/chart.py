"""A chart is a drawing with its title, its legend and a sentence on how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One entry of a legend: a name, the CSS variable of its colour, and how it is drawn."""

    name: str
    variable: str
    mark: str = "line"  # or "dash", "box", "dot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A legend of neighbouring colours (CSS variable, opacity) between two names."""

    low: str
    high: str
    colors: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What the page shows. The title says the units.

    Attributes:
        wide: an `<svg>` for half of a desktop's width and for phones, or for the full width (see `narrow`).
        narrow: where `wide` spans the page, the same drawn for a phone.
        panels: in place of `svg`: small drawings of one kind side by side, each with its name.
    """

    title: str
    svg: str = ""
    keys: tuple[Key | Scale, ...] = ()
    caption: str = ""
    narrow: str | None = None
    panels: tuple[tuple[str, str], ...] = ()
