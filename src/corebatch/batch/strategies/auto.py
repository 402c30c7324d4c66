"""Full scoring, or each example once, whichever the run calls for."""

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
    """`remembered` with `unknown: score` where examples come again (more than one epoch) and the other settings go with
    it: every example is scored in the first epoch, and none after it. Else `full`."""

    way: ClassVar[str] = "auto"
    stands_for_another: ClassVar[bool] = True
    first_pass_differs: ClassVar[bool] = True
    scores_exactly = False

    def resolve(self, again: bool, fits: Callable[[Strategy], bool]) -> Strategy:
        options = dataclasses.asdict(self)
        remembered = Remembered(unknown="score", **options)
        return remembered if again and fits(remembered) else Full(**options)
