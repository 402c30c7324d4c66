"""No scoring forward unless something that the user gave asks for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from corebatch.batch.strategies.base import Reusing, Strategy
from corebatch.batch.strategies.full import Full
from corebatch.batch.strategies.remembered import Remembered
from corebatch.batch.strategies.unscored import Unscored


@dataclass(frozen=True, kw_only=True)
class Auto(Reusing):
    """What costs no forward, where that honours all that was given: `remembered` with `unknown: guess` where examples
    come again, else `none`. Else `remembered` with `unknown: score` where examples come again, else `full`.

    A forward is asked for by a scorer whose features training does not give, by a normaliser or sparsifier, by small
    sources, by a selector that looks at features and draws no rows; in a single pass, where nothing is remembered, by
    any scorer or selector other than the default; and by an option here, which speaks of forwards.
    """

    way: ClassVar[str] = "auto"
    stands_for_another: ClassVar[bool] = True
    first_pass_differs: ClassVar[bool] = True
    scores_exactly = False

    def resolve(
        self, again: bool, fits: Callable[[Strategy], bool], *, named: bool = False, taught: bool = True
    ) -> Strategy:
        options = dataclasses.asdict(self)
        guessed, scored, unscored = Remembered(), Remembered(unknown="score", **options), Unscored()
        if self == Auto():
            if again and taught and fits(guessed):
                return guessed
            if not named and fits(unscored):
                return unscored
        return scored if again and fits(scored) else Full(**options)
