"""What the demo trains on and how long: constants measured on two CPU cores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PROMPT_FORMAT = "Question: {question}\nAnswer:"
"""Completions begin with a space, so that prompt and answer have the same tokens apart and together."""


@dataclass(frozen=True, kw_only=True)
class DemoSource:
    """One source of the mixture: a reasoning-gym generator, its options, and how many training examples it gives."""

    generator: str
    examples: int
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
