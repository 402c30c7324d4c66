"""Plain gradient descent's map of a gradient: none."""

from __future__ import annotations

from torch import Tensor

from corebatch.transforms.base import Normaliser, Shapes


class Sgd(Normaliser):
    """Features as they are: the update of SGD is the gradient times the learning rate. The same as no normaliser, said
    aloud."""

    name = "sgd"
    linear = True

    def __call__(self, features: Tensor, second_moments: Tensor | None = None, shapes: Shapes | None = None) -> Tensor:
        return features
