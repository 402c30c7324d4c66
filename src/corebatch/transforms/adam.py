"""Adam's map of a gradient, as CoLM applies it to each example, and as a scale that all examples share."""

from __future__ import annotations

import torch
from torch import Tensor

from corebatch.errors import CheckpointError, ConfigError, InputError
from corebatch.transforms.base import Normaliser, Shapes


class AdamHistory(Normaliser):
    """u_i = m_i / (sqrt(v_i) + eps) with m_i = (b1 m + (1 - b1) g_i) / (1 - b1^t), v_i alike with squares.

    CoLM, arXiv 2407.19580. m and v are histories of its own: after each step they become the means, over the chosen
    examples of the large sources, of what m_i and v_i are without the correction for t. So v is a mean of squares, of
    single examples, and not the square of their mean as an optimizer's is. t counts all steps, also those that choose
    from no large source and leave the histories as they are. The map is not linear, so a weighted mean of u_i says
    nothing of the mean gradient's u: it belongs to the faithful recipe alone. With an empty history (the first step)
    the map would be sign(g_i) whatever the length; raw features are used then.
    """

    name = "adam"
    linear = False

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        for option, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ConfigError(f"adam's {option} should be in [0, 1). Found {value!r}.")
        if not eps > 0:
            raise ConfigError(f"adam's eps should be above 0. Found {eps!r}.")
        self.beta1, self.beta2, self.eps = float(beta1), float(beta2), float(eps)
        self.steps = 0
        self._m: Tensor | None = None
        self._v: Tensor | None = None

    def __call__(self, features: Tensor, second_moments: Tensor | None = None, shapes: Shapes | None = None) -> Tensor:
        if self._m is None or self._v is None:
            return features
        self._check(features.shape[1])
        features = _wide(features)
        m, v = self._m.to(features), self._v.to(features)
        t = self.steps + 1
        m = (self.beta1 * m + (1 - self.beta1) * features) / (1 - self.beta1**t)
        v = (self.beta2 * v + (1 - self.beta2) * features.square()) / (1 - self.beta2**t)
        return m / (v.sqrt() + self.eps)

    def update(self, rows: Tensor) -> None:
        self.steps += 1
        if len(rows) == 0:
            return
        rows = _wide(rows)
        if self._m is None or self._v is None:
            self._m, self._v = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        self._check(rows.shape[1])
        # A history that comes from a checkpoint lies on the CPU.
        self._m = self.beta1 * self._m.to(rows) + (1 - self.beta1) * rows.mean(dim=0)
        self._v = self.beta2 * self._v.to(rows) + (1 - self.beta2) * rows.square().mean(dim=0)

    def _check(self, width: int) -> None:
        assert self._m is not None
        if len(self._m) != width:
            raise InputError(f"adam's history is of {len(self._m)} features. Found {width}.")

    def state_dict(self) -> dict[str, Tensor]:
        moments = {"m": self._m, "mean_square": self._v, "steps": torch.tensor(self.steps)}
        return {key: value.cpu() for key, value in moments.items() if value is not None} if self.steps else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "v" in state:
            raise CheckpointError(
                "adam's history should hold means of squares, `mean_square`. Found `v`, squares of means, which "
                "earlier versions kept: the map would be another one. Begin this run anew."
            )
        self._m, self._v = state.get("m"), state.get("mean_square")
        self.steps = int(state["steps"]) if "steps" in state else 0


class OptimizerScale(Normaliser):
    """g_i / (sqrt(v) + eps) with the live optimizer's second moments v, the same for every row.

    What Adam will do to the mean of the batch up to its momentum, linear in the rows, so that weighted estimates stay
    estimates. Before the optimizer's first step there are no moments and features pass as they are.
    """

    name = "optimizer"
    linear = True
    needs_moments = True

    def __init__(self, *, eps: float = 1e-8) -> None:
        if not eps > 0:
            raise ConfigError(f"optimizer's eps should be above 0. Found {eps!r}.")
        self.eps = float(eps)

    def __call__(self, features: Tensor, second_moments: Tensor | None = None, shapes: Shapes | None = None) -> Tensor:
        if second_moments is None:
            return features
        if second_moments.shape != features.shape[1:]:
            raise InputError(
                f"Second moments should be [{features.shape[1]}], one for each feature. "
                f"Found {tuple(second_moments.shape)}."
            )
        features = _wide(features)
        return features / (second_moments.to(features).sqrt() + self.eps)


def _wide(rows: Tensor) -> Tensor:
    """In float32 at least: a thousandth of a square is less than the last digit of a history in bfloat16, which would
    stand still, and eps is nothing in float16."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
