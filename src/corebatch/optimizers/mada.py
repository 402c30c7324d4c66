"""MADA with AVGrad: an optimizer between Adam, AVGrad, Yogi, Adan and Lion that learns where between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from corebatch.errors import ConfigError

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of a weight, each of its shape: momentum, second moment and its running mean, momentum of differences of gradients,
Lion's momentum, the gradient of the step before."""

NAMES = ("beta1", "beta2", "beta3", "rho", "c", "gamma")
LOWEST = (0.01, 0.501, 0.0, 0.0, 0.0, 0.0)
HIGHEST = (0.99, 0.99, 0.99, 1.0, 1.0, 1.0)
LION = (0.95, 0.98)
"""Lion's betas of its step and of its momentum, as MADA's authors have them for language models."""
SMALLEST = 1e-30
"""Added to what a square root is taken of: where a weight never had a gradient its slope would be infinite."""


class MADA(Optimizer):
    """Meta-adaptive optimizer (arXiv 2401.08893, algorithm 1, with AVGrad in AMSGrad's place).

        g^  = g + beta3 (g - g')                          g': the gradient before; at first g itself
        v   = beta2 v + (1 - beta2) (c g^2^ + (1 - c) (v + g^2^ sign(g^2^ - v)))          g^2^: the square of g^
        m   = beta1 m + (1 - beta1) g,     n = beta3 n + (1 - beta3) (g - g')
        a   = (v + (t - 1) a) / t                         AVGrad: the mean of all v, where AMSGrad has their largest
        u   = gamma (m / (1 - beta1^t) + beta3 n) / (sqrt((rho v + (1 - rho) a) / (1 - beta2^t)) + eps)
              + (1 - gamma) sign(l),                      l: Lion's step, beta 0.95 of its own momentum
        w   = w - lr u, after w = w - lr weight_decay w

    c = rho = gamma = 1 and beta3 = 0 is Adam; rho = 0 AVGrad, c = 0 Yogi, beta3 above 0 Adan, gamma = 0 Lion. All six
    coefficients are common to all weights and follow, before each step, the slope of the loss by what they were in the
    step before: -lr g . du/d(coefficient), at rates `beta_rate` (beta1, beta2) and `rate`. The moments before that
    step, and the mean a, are held fixed in the slope, as the authors' code does. Lion is that of its paper; there
    its momentum moves before the step.

    Kept of a weight: six tensors and the gradient; the slope is taken by repeating the last step.

    Args:
        betas: beta1 and beta2 to begin with.
        beta3, rho, c, gamma: to begin with.

    Raises:
        ConfigError: a coefficient outside of its bounds, or a rate below 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        beta3: float = 0.0,
        rho: float = 0.6,
        c: float = 1.0,
        gamma: float = 1.0,
        beta_rate: float = 5e-4,
        rate: float = 0.1,
    ) -> None:
        coefficients = [float(x) for x in (*betas, beta3, rho, c, gamma)]
        for name, x, low, high in zip(NAMES, coefficients, LOWEST, HIGHEST, strict=True):
            if not low <= x <= high:
                raise ConfigError(f"MADA's {name} should be in [{low}, {high}]. Found {x}.")
        for name, x in (("beta_rate", beta_rate), ("rate", rate), ("eps", eps)):
            if not x >= 0:
                raise ConfigError(f"MADA's {name} should be at least 0. Found {x}.")
        super().__init__(
            params,
            {
                "lr": lr, "eps": eps, "weight_decay": weight_decay, "beta_rate": beta_rate, "rate": rate,
                "coefficients": coefficients, "lr_before": 0.0,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        coefficients = self._learnt()
        for group in self.param_groups:
            group["coefficients"], group["lr_before"], lr = coefficients, float(group["lr"]), float(group["lr"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["moments"], state["step"] = (*(torch.zeros_like(p) for _ in range(5)), p.grad.clone()), 0
                state["gradient"], state["step"] = p.grad.clone(), state["step"] + 1
                u, _, _ = advanced(state["moments"], state["gradient"], state["step"], coefficients, group["eps"])
                p.mul_(1 - lr * group["weight_decay"]).sub_(u, alpha=lr)
        return loss

    def _learnt(self) -> list[float]:
        """The coefficients of the step that comes; what a weight keeps is brought to after the step before."""
        first, slopes = self.param_groups[0], list[Tensor]()
        before = torch.tensor(first["coefficients"], dtype=torch.float64)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p)
                if not state or state["gradient"] is None:
                    continue
                wide = torch.promote_types(p.dtype, torch.float32)
                with torch.enable_grad():
                    known = before.to(wide).to(p.device).requires_grad_()
                    u, after, _ = advanced(state["moments"], state["gradient"], state["step"], known, group["eps"])
                    if p.grad is not None:
                        (found,) = torch.autograd.grad((u * p.grad).sum(dtype=wide), known)
                        slopes.append(-group["lr_before"] * found)
                state["moments"], state["gradient"] = tuple(each.detach() for each in after), None
        if not slopes:
            return before.tolist()
        slope = torch.stack([each.to(slopes[0]) for each in slopes]).sum(dim=0)  # read by the host once
        rates = [first["beta_rate"]] * 2 + [first["rate"]] * 4
        moved = [x - rate * s for x, rate, s in zip(before.tolist(), rates, slope.tolist(), strict=True)]
        return [min(max(x, low), high) for x, low, high in zip(moved, LOWEST, HIGHEST, strict=True)]

    def second_moment_of(self, parameter: nn.Parameter) -> Tensor | None:
        """What the step of a weight divides by the root of, bias-corrected; None before its first step. Lion's part of
        the step, by a sign, has no such scale."""
        state = self.state.get(parameter)
        if not state or state["gradient"] is None:
            return None
        group = self.param_groups[0]
        moments = state["moments"], state["gradient"], state["step"]
        return advanced(*moments, group["coefficients"], group["eps"])[2].detach()


def advanced(moments: State, g: Tensor, t: int, coefficients: Any, eps: float) -> tuple[Tensor, State, Tensor]:
    """u, what is kept after the step, and the corrected second moment that u is divided by.

    Args:
        moments: before the step.
        g: the gradient.
        t: the number of the step, from 1.
        coefficients: six, by NAMES.
    """
    beta1, beta2, beta3, rho, c, gamma = coefficients
    m, v, mean, n, lion, previous = moments
    change = g - previous
    square = (g + beta3 * change) ** 2
    step_of_lion = (LION[0] * lion + (1 - LION[0]) * g).sign()
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (c * square + (1 - c) * (v + square * (square - v).sign()))
    n = beta3 * n + (1 - beta3) * change
    mean = (v.detach() + (t - 1) * mean) / t
    lion = LION[1] * lion + (1 - LION[1]) * g
    second = (rho * v + (1 - rho) * mean) / (1 - beta2**t)
    u = gamma * (m / (1 - beta1**t) + beta3 * n) / ((second + SMALLEST).sqrt() + eps) + (1 - gamma) * step_of_lion
    return u, (m, v, mean, n, lion, g), second
