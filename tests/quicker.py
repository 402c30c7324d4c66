"""What takes a large part of a short training in the libraries around it, and is not what any test is about."""

from __future__ import annotations

import gc
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any


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
    # The card of each adapter is compiled from the same template. Environments of chat templates are not shared.
    environments = sys.modules.get("jinja2.environment")
    if environments is not None and not hasattr(environments.Environment.compile, "plain"):
        environments.Environment.compile = _compiled_once(environments.Environment.compile)


def _compiled_once(plain: Any) -> Any:
    kept = cache(plain)

    def compile(self: Any, *words: Any, **named: Any) -> Any:
        return (kept if self.shared else plain)(self, *words, **named)

    compile.plain = plain  # type: ignore[attr-defined]
    return compile


def before_forks() -> None:
    """What a process looks up at its first run and keeps, so that its children need not: compiled loops, the patterns
    by which PEFT renames weights of old checkpoints (half of a short life), commits, versions, the template of a card.
    What was imported is set apart from garbage: the Trainer collects at each start."""
    import jinja2.environment  # noqa: F401
    import torch
    from huggingface_hub import ModelCard, ModelCardData

    from corebatch.record.provenance import commit_of_corebatch, commit_of_user, versions
    from corebatch.selectors import SELECTORS, make_selector
    from models import tiny_model

    quicken()
    torch.set_num_threads(1)
    features = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    for name in SELECTORS:
        make_selector(name).select(features, budget=4, losses=features[:, 0], validation=features[:2])
    tiny_model(lora=True)
    ModelCard.from_template(ModelCardData())
    commit_of_corebatch(), commit_of_user(), versions()
    gc.collect()
    gc.freeze()
