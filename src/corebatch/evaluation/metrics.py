"""F1 scores of chosen labels."""

from __future__ import annotations

from collections.abc import Sequence


def f1(expected: Sequence[int], chosen: Sequence[int], label: int = 1) -> float:
    """Harmonic mean of precision and recall of one label; 0 where it is neither expected nor chosen."""
    pairs = list(zip(expected, chosen, strict=True))
    both = sum(one == label and other == label for one, other in pairs)
    either = sum((one == label) + (other == label) for one, other in pairs)
    return 2 * both / either if either else 0.0


def macro_f1(expected: Sequence[int], chosen: Sequence[int]) -> float:
    """Mean of the F1 of each label that is expected or chosen at least once."""
    labels = sorted({*expected, *chosen})
    return sum(f1(expected, chosen, label) for label in labels) / len(labels)
