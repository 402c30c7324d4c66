"""DoGE (Fan et al. 2023, arXiv 2310.15393): more of the sources whose gradients point where the others' do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corebatch.sampling.online.base import FLOOR, MultiplicativeShares, check_number, names_of


class DoGE(MultiplicativeShares):
    """With g_s the gradient of source s's mean token loss, at every step

        a_s = sum_{k in targets} <g_s, g_k>,       w_s <- w_s exp(eta a_s) / sum_k w_k exp(eta a_k)

    (Algorithm 1 of the paper, with eta = learning rate / mu). By a first-order expansion a_s is what a step on source s
    takes off the targets' losses. Its result is the mean of the shares (`average`), by which a second model is trained.

    Gradients are those by which rows are scored, so that there is no further backward: of the parameters that the
    scorer looks at, which the paper's selection of parameters allows for. A source without a scored row has a_s = 0.

    What differs: |g_s|^2 is estimated without the part that is each row's with itself, since it would favor small
    sources for their noise alone. The official code divides a by the mean length of the g_s, which leaves it the scale
    of a gradient; ours divides by the mean squared length, so that eta means the same for every scorer. As there, the
    quotient is cut to [0, `most`]; its default eta is 0.05 (learning rate 5e-4, mu 0.01) and `most` is 5.

    Args:
        targets: the sources that are to be learnt; None: all.
        eta: step size.
        most: of a quotient.
        smoothing: equal shares that each update mixes in, in [0, 1].
        floor, start: as in `OnlineShares`.
    """

    name = "doge"
    needs_gradients = True

    def __init__(
        self,
        *,
        targets: Sequence[str] | None = None,
        eta: float = 0.05,
        most: float = 5.0,
        smoothing: float = 0.0,
        floor: float = FLOOR,
        start: str = "equal",
    ) -> None:
        super().__init__(floor, start, smoothing)
        self.targets = names_of("targets", targets)
        self.eta, self.most = check_number("eta", eta, 0, above=True), check_number("most", most, 0, above=True)

    def _begin(self) -> None:
        super()._begin()
        self._targets = self._places(self.targets or self.names, "targets")

    def observe_gradients(self, sums: Tensor, squares: Tensor, rows: Tensor, tokens: Tensor) -> None:
        sums, squares, rows, tokens = (part.detach().double().cpu() for part in (sums, squares, rows, tokens))
        seen, many = tokens > 0, rows > 1
        means = sums / tokens.clamp(min=1).unsqueeze(1)
        alignments = means @ means.T
        lengths = alignments.diagonal().clone()
        scale = float(lengths[seen].mean()) if bool(seen.any()) else 0.0
        if not scale > 0:
            return
        # Of pairs of different rows; one row says nothing of the square of its source's mean.
        own = (sums.square().sum(1) - squares) * rows / (rows - 1).clamp(min=1) / tokens.clamp(min=1).square()
        alignments.diagonal().copy_(torch.where(many, own, 0.0))
        self._multiply(self.eta * (alignments[:, self._targets].sum(1) / scale).clamp(0, self.most))
