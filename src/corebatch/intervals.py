"""The interval of a proportion."""

import math

from corebatch.errors import InputError

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson_interval(correct: int, total: int, *, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, 95 % by default (Wilson 1927); inside [0, 1] also at 0 and at all.
    Raises InputError: `total` below 1 or `correct` outside 0..total."""
    if total < 1 or not 0 <= correct <= total:
        raise InputError(f"`correct` of `total` should be 0..total of at least 1. Found {correct} of {total}.")
    share, z2 = correct / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high
