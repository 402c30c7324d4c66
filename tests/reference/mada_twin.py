"""MADA of one vector, slowly: as the paper's algorithm 1 reads, with slopes by differences of the loss itself."""

import numpy as np

LOW = np.array([0.01, 0.501, 0, 0, 0, 0])
HIGH = np.array([0.99, 0.99, 0.99, 1, 1, 1])


def one_step(kept, g, t, h, eps):
    """What a weight moves by for lr 1, and what is kept for the next step."""
    beta1, beta2, beta3, rho, c, gamma = h
    change = g - (g if kept["before"] is None else kept["before"])
    squared = (g + beta3 * change) ** 2
    yogi = kept["v"] + squared * np.sign(squared - kept["v"])
    v = beta2 * kept["v"] + (1 - beta2) * (c * squared + (1 - c) * yogi)
    m = beta1 * kept["m"] + (1 - beta1) * g
    n = beta3 * kept["n"] + (1 - beta3) * change
    # The slope does not go through the mean: it is of v at the coefficients that the step had.
    fixed = v if kept["fixed"] is None else kept["fixed"]
    mean = (fixed + (t - 1) * kept["mean"]) / t
    root = np.sqrt((rho * v + (1 - rho) * mean) / (1 - beta2**t) + 1e-30)
    lion = np.sign(0.95 * kept["lion"] + 0.05 * g)
    u = gamma * (m / (1 - beta1**t) + beta3 * n) / (root + eps) + (1 - gamma) * lion
    after = {"m": m, "v": v, "mean": mean, "n": n, "lion": 0.98 * kept["lion"] + 0.02 * g, "before": g, "fixed": None}
    return u, after


def mada(loss, gradient, w, rates, h, *, decay=0.0, eps=1e-6, beta_rate=5e-4, rate=0.1):
    """The weights after each step. `rates`: a learning rate for each; `loss`, `gradient`: of the weights."""
    w, h = np.array(w, dtype=float), np.array(h, dtype=float)
    kept = {**{name: np.zeros_like(w) for name in ("m", "v", "mean", "n", "lion")}, "before": None, "fixed": None}
    speed, last, path = np.array([beta_rate] * 2 + [rate] * 4), None, []
    for t, lr in enumerate(rates, start=1):
        if last is not None:
            moved, slope = h.copy(), np.zeros(6)
            for k in range(6):
                there = []
                for side in (1e-6, -1e-6):
                    other = h.copy()
                    other[k] += side
                    there.append(loss(last(other)))
                slope[k] = (there[0] - there[1]) / 2e-6
            h = np.clip(moved - speed * slope, LOW, HIGH)
        g = gradient(w)
        u, after = one_step(kept, g, t, h, eps)

        def last(other, w=w, kept=kept, after=after, g=g, t=t, lr=lr):
            return w - lr * decay * w - lr * one_step({**kept, "fixed": after["v"]}, g, t, other, eps)[0]

        w, kept = w - lr * decay * w - lr * u, after
        path.append((w.copy(), h.copy()))
    return path
