"""A scoring forward only where something that the user gave asks for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from corebatch.batch.strategies.base import Reusing, Strategy
from corebatch.batch.strategies.full import Full
from corebatch.batch.strategies.remembered import Remembered


@dataclass(frozen=True, kw_only=True)
class Auto(Reusing):
    """`remembered` with `unknown: guess` where examples come again and that honours all that was given, else with
    `unknown: score`; in a single pass `full`, which costs no forward for a scorer that needs none, as the default's.

    A forward is asked for by a scorer whose features training does not give, by a normaliser or sparsifier, by small
    sources, by a selector that looks at features and draws no rows; in a single pass, where nothing is remembered, by
    any scorer that needs one; and by an option here, which speaks of forwards.
    """

    way: ClassVar[str] = "auto"
    stands_for_another: ClassVar[bool] = True
    first_pass_differs: ClassVar[bool] = True
    scores_exactly = False

    def resolve(self, again: bool, fits: Callable[[Strategy], bool], *, taught: bool = True) -> Strategy:
        options = dataclasses.asdict(self)
        guessed, scored = Remembered(), Remembered(unknown="score", **options)
        if self == Auto() and again and taught and fits(guessed):
            return guessed
        return scored if again and fits(scored) else Full(**options)
