"""Optimizers of large batches by name, and the Power scheduler."""

from __future__ import annotations

from corebatch.optimizers.mada import MADA
from corebatch.optimizers.named import OPTIMIZERS, Name, kept_numbers, make_optimizer, takes_betas, training_arguments
from corebatch.optimizers.power import POWER, PowerLaw

__all__ = [
    "MADA",
    "OPTIMIZERS",
    "POWER",
    "Name",
    "PowerLaw",
    "kept_numbers",
    "make_optimizer",
    "takes_betas",
    "training_arguments",
]
