"""One thing that `corebatch advise` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corebatch.errors import InputError

TO_LOSS = "seconds to the same loss"
"""What the factors of levers on the noise of a step are of."""
MORE_MINUTES = "give more --minutes"
"""What is said wherever a measurement had too little time, and has it made once more in time that others leave."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A lever: what it is worth on this run, and the keys that pull it; or why that could not be measured.

    Attributes:
        lever: its name, a few words.
        arm: the config's keys that it sets, flat, as in {"coreset.micro_batches": "positions"}; {} where it is only
            told.
        factor: of what `of` says, under the arm over as configured: below 1 is faster, or less; None where it is told.
        low, high: the interval of the factor, 95 % where nothing else is said in `why`; None where it has none.
        of: what the factor is of: "seconds a step", "seconds to the same loss", "memory", ...
        why: one sentence with the numbers.
        recommended: whether the config that is written sets the keys of the arm.
        numbers: what was measured, plain values. The closing sentence begins with `verdict`.
        unmeasured: why there is no number, where there is none.

    Raises:
        InputError: recommended without keys, or without a measurement; a factor that is not above 0.
    """

    lever: str
    arm: Mapping[str, Any] = field(default_factory=dict)
    factor: float | None = None
    low: float | None = None
    high: float | None = None
    of: str = "seconds a step"
    why: str = ""
    recommended: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)
    unmeasured: str | None = None

    def __post_init__(self) -> None:
        if self.recommended and (not self.arm or self.unmeasured is not None):
            raise InputError(f"What is recommended should have keys and a measurement. Found {self}.")
        if self.factor is not None and not self.factor > 0:
            raise InputError(f"The factor of {self.lever} should be above 0. Found {self.factor}.")

    @property
    def hurried(self) -> bool:
        """Whether all or a part of it was not measured for want of time."""
        return MORE_MINUTES in self.why or MORE_MINUTES in (self.unmeasured or "")
