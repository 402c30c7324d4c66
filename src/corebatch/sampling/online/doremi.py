"""DoReMi (Xie et al. 2023, arXiv 2305.10429): more of the sources whose loss exceeds a reference's the most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.sampling.online.base import FLOOR, MultiplicativeShares, check_number, numbers_by_name


class DoReMi(MultiplicativeShares):
    """Group DRO over sources. With the excess e_s = max(L_s - reference_s, 0), at every step

        w_s <- (1 - c) w_s exp(eta e_s) / sum_k w_k exp(eta e_k) + c / S        (Algorithm 1 of the paper)

    eta = 1 and c = 0.001 are the paper's. Its result is the mean of the shares over the steps (`average`), by which a
    second, larger model is then trained; here they also are the running model's objective, as they are its proxy's.

    What differs: the paper cuts the excess off at 0 token by token and has a reference model compute each token's
    loss; ours takes one reference loss for a source, as a short run or an evaluation gives it, and cuts off the
    source's excess (as the implementation in Aioli's repository does). A source that was not trained in a step keeps
    its last excess, as in the official code; before its first one it has the mean of the others'.

    Args:
        reference_losses: {source: mean token loss in nats} of a reference, or the path of a JSON file.
        eta: step size.
        smoothing: c.
        floor, start: as in `OnlineShares`.
    """

    name = "doremi"
    kept = (*MultiplicativeShares.kept, "excess")

    def __init__(
        self,
        *,
        reference_losses: Mapping[str, float] | str | Path | None = None,
        eta: float = 1.0,
        smoothing: float = 1e-3,
        floor: float = FLOOR,
        start: str = "equal",
    ) -> None:
        super().__init__(floor, start, smoothing)
        self.eta = check_number("eta", eta, 0, above=True)
        if reference_losses is None:
            raise ConfigError(
                "online doremi needs reference_losses: {source: mean token loss in nats} of a reference model, or the "
                "path of a JSON file with it. Found none."
            )
        given = numbers_by_name("reference_losses", reference_losses)
        self.references = {key: check_number(f"reference_losses: {key}", each, 0) for key, each in given.items()}

    def _begin(self) -> None:
        super()._begin()
        self._places(self.references, "reference_losses")
        missing = [name for name in self.names if name not in self.references]
        if missing:
            raise ConfigError(f"reference_losses should have every source. Found none for {', '.join(missing)}.")
        self._references_S = torch.tensor([self.references[name] for name in self.names], dtype=torch.float64)
        self.excess = torch.full_like(self.weights, torch.nan)

    def _observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        found = (losses - self._references_S).clamp(min=0)  # NaN stays
        self.excess = torch.where(losses.isnan(), self.excess, found)
        if bool(self.excess.isnan().all()):
            return
        self._multiply(self.eta * torch.where(self.excess.isnan(), self.excess.nanmean(), self.excess))
