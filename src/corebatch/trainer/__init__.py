"""Stage 6 and all around it: the step inside the trainer that people already use."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from corebatch.trainer.config import CoresetConfig, ScoringConfig
from corebatch.trainer.counting import count_source_tokens
from corebatch.trainer.in_backward import OptimizerInBackward
from corebatch.trainer.mixin import CoresetMixin
from corebatch.trainer.recipes import RECIPES


class CoresetTrainer(CoresetMixin, Trainer):
    """`transformers.Trainer` that draws a large batch at every step and trains on a small one.

    `CoresetTrainer(model=..., args=..., train_dataset=..., coreset=CoresetConfig(pool_factor=2))`.
    """


def __getattr__(name: str) -> Any:
    """`CoresetSFTTrainer` needs trl, an extra, and is made when it is asked for."""
    if name != "CoresetSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corebatch.trainer.sft import CoresetSFTTrainer

    return CoresetSFTTrainer


# Without CoresetSFTTrainer: `import *` must work without trl.
__all__ = [
    "RECIPES",
    "CoresetConfig",
    "CoresetMixin",
    "CoresetTrainer",
    "OptimizerInBackward",
    "ScoringConfig",
    "count_source_tokens",
]
