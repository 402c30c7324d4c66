"""Several numbers in one option."""

from __future__ import annotations

import math

from corebatch.errors import ConfigError


def whole_numbers(text: str, option: str) -> list[int]:
    """Of "10,200"; raises ConfigError that names the option for another form or a negative number."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{option} should be numbers with commas, such as 10,200. Found {text!r}.") from None
    if min(numbers) < 0:
        raise ConfigError(f"--{option} should not be negative. Found {text!r}.")
    return numbers


def cost_ratios(text: str | None) -> list[float]:
    """Of "2.85,3.6"; raises ConfigError for another form or a ratio that is not above 1."""
    try:
        ratios = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"--cost-ratio should be numbers with commas, such as 2.85,3.6. Found {text!r}.") from None
    if not all(1 < ratio < math.inf for ratio in ratios):
        raise ConfigError(f"--cost-ratio should be above 1: a backward costs something. Found {text!r}.")
    return ratios
