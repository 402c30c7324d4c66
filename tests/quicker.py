"""What takes a large part of a short training in the libraries around it, and is not what any test is about."""

from __future__ import annotations

import sys
from functools import cache
from types import SimpleNamespace


def quicken() -> None:
    """For the packages that are imported by now; may be called again."""
    if memory := sys.modules.get("accelerate.utils.memory"):
        # Accelerate collects garbage whenever a training begins; Python's own collections are left.
        memory.gc = SimpleNamespace(collect=lambda: 0)
    # It also reads the metadata of a package in each backward, to see whether that is installed.
    imports = sys.modules.get("accelerate.utils.imports")
    if imports is not None and not hasattr(imports._is_package_available, "cache_clear"):
        imports._is_package_available = cache(imports._is_package_available)
    # The Trainer lists a model's parameters by name in each forward, for its own count of FLOPs.
    if trainer := sys.modules.get("transformers.trainer"):
        trainer.Trainer.floating_point_ops = lambda self, inputs: 0
