"""Online data mixing, ODM (Albalak et al. 2023, arXiv 2312.02406): a bandit whose reward is a source's loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corebatch.sampling.online.base import FLOOR, OnlineShares, check_number


class ODM(OnlineShares):
    """EXP3 with a moving average of rewards. After step t, for the sources s that it trained, with shares p:

        R_s <- alpha R_s + (1 - alpha) L_s / p_s
        eps_t = min(1/S, sqrt(ln S / (S t)))
        p_s <- (1 - S eps_t) exp(eps_{t-1} R_s) / sum_k exp(eps_{t-1} R_k) + eps_t

    A high loss is what there is to learn; dividing by the share corrects for how often a source is looked at. Early on
    eps_t is 1/S, so the shares are equal; a source that was not trained keeps its estimate.

    What differs: the authors draw one source for a batch, ours are shares of an objective and most sources have a loss
    in every step. The official code sums rewards over 10 without averaging (`exp3`), or averages them without dividing
    by the share (`smoothed_mean`); ours is the paper's text. `floor` is ours: there eps_t alone keeps shares up.

    Args:
        alpha: of the moving average, in [0, 1).
        floor: as in `OnlineShares`.
    """

    name = "odm"
    kept = ("weights", "rewards", "updates")

    def __init__(self, *, alpha: float = 0.9, floor: float = FLOOR) -> None:
        super().__init__(floor)
        self.alpha = check_number("alpha", alpha, 0, math.nextafter(1, 0))

    def _begin(self) -> None:
        self.rewards, self.updates = torch.zeros_like(self.weights), torch.zeros((), dtype=torch.long)

    def _observe(self, losses: Tensor, tokens: Tensor, step: int) -> None:
        seen, count = ~losses.isnan(), len(losses)
        if not bool(seen.any()):
            return
        moved = self.alpha * self.rewards + (1 - self.alpha) * losses / self.shares
        self.rewards = torch.where(seen, moved, self.rewards)
        before, self.updates = self._exploration(int(self.updates)), self.updates + 1
        now = self._exploration(int(self.updates))
        self.weights = (1 - count * now) * torch.softmax(before * self.rewards, 0) + now

    def _exploration(self, update: int) -> float:
        """eps_t."""
        count = len(self.names)
        return min(1 / count, math.sqrt(math.log(count) / (count * update))) if update else 1 / count
