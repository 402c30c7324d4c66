"""Stages 3 and 4: features as the optimizer will see them, and fewer of them."""

from __future__ import annotations

from corebatch.errors import ConfigError
from corebatch.options import build
from corebatch.transforms.adam import AdamHistory, OptimizerScale
from corebatch.transforms.base import Normaliser, Shapes, Sparsifier
from corebatch.transforms.muon import Muon
from corebatch.transforms.projection import Projection
from corebatch.transforms.sgd import Sgd
from corebatch.transforms.topk import TopK

NORMALISERS: dict[str, type[Normaliser]] = {kind.name: kind for kind in (AdamHistory, OptimizerScale, Muon, Sgd)}
SPARSIFIERS: dict[str, type[Sparsifier]] = {kind.name: kind for kind in (TopK, Projection)}


def make_normaliser(normalise: str | Normaliser | None) -> Normaliser | None:
    """From a name, an instance, or none ("none" as well).

    Raises:
        ConfigError: an unknown name.
    """
    if normalise is None or normalise == "none":
        return None
    return build("normalise", normalise, None, NORMALISERS, Normaliser)


def make_sparsifier(sparsify: str | int | Sparsifier | None) -> Sparsifier | None:
    """From a name, an instance, none ("none" as well), or an integer: that many coordinates by `topk`.

    Raises:
        ConfigError: an unknown name, or a number below 1.
    """
    if sparsify is None or sparsify == "none":
        return None
    if isinstance(sparsify, int) and not isinstance(sparsify, bool):
        if sparsify < 1:
            raise ConfigError(f"sparsify should be a name or an integer of at least 1. Found {sparsify}.")
        return TopK(h=sparsify)
    return build("sparsify", sparsify, None, SPARSIFIERS, Sparsifier)


__all__ = [
    "NORMALISERS",
    "SPARSIFIERS",
    "AdamHistory",
    "Muon",
    "Normaliser",
    "OptimizerScale",
    "Projection",
    "Sgd",
    "Shapes",
    "Sparsifier",
    "TopK",
    "make_normaliser",
    "make_sparsifier",
]
