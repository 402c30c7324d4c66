"""What rules for learning rates and beta2 give, into docs/running/rates.md: arithmetic, so without seeds or spread.

python benchmarks/rates.py
"""

from __future__ import annotations

import math
from pathlib import Path

from corebatch.optimizers import PowerLaw
from pages import ROOT, table, write_between

PAGE = ROOT / "docs" / "running" / "rates.md"
ROWS, TOKENS = (8, 32, 128, 512), 256
"""Rows of a step, and tokens of a row."""


def square_root(factor: float, beta: float) -> tuple[float, float]:
    """For a batch `factor` times as large: by what Adam's learning rate is multiplied, and what a beta becomes.

    Malladi et al. 2022, arXiv 2205.10287: the rate by the root, 1 - beta by the factor; it holds while beta is well
    above 0."""
    return math.sqrt(factor), max(0.0, 1 - factor * (1 - beta))


def same_half_life(factor: float, beta: float) -> float:
    """beta2 for a batch `factor` times as large, so that its half-life in tokens stays (Marek et al. 2025,
    arXiv 2507.07101): beta^factor."""
    return beta**factor


def half_life(beta: float, tokens: float) -> float:
    """Tokens after which a gradient counts half, at so many tokens a step."""
    return tokens * math.log(0.5) / math.log(beta)


def step_law(parameters: float, tokens: float) -> tuple[float, float]:
    """Learning rate, and tokens of a step, of pretraining on so many tokens (Li et al. 2025, arXiv 2503.04715).

    Args:
        parameters: without embeddings.
    """
    return 1.79 * parameters**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def betas() -> str:
    """From beta2 = 0.999 at the second size."""
    lines, base = [], ROWS[1]
    for rows in ROWS:
        root, beta = square_root(rows / base, 0.999)
        kept = same_half_life(rows / base, 0.999)
        lines.append([
            str(rows), f"{root:.2f}", f"{beta:.4f}", f"{kept:.4f}",
            f"{half_life(kept, rows * TOKENS):,.0f}", f"{half_life(0.999, rows * TOKENS):,.0f}",
        ])  # fmt: skip
    heads = ["rows of a step", "rate x", "beta2, square-root rule", "beta2, same half-life"]
    return table([*heads, "its half-life, tokens", "half-life at beta2 0.999"], lines)


def laws() -> str:
    """The Step law for a few sizes."""
    sizes = ((30e6, 600e6), (135e6, 2.7e9), (135e6, 100e9), (1.7e9, 34e9))
    found = [(n, d, *step_law(n, d)) for n, d in sizes]
    lines = [[f"{n / 1e6:,.0f} M", f"{d / 1e9:,.1f} B", f"{rate:.2e}", f"{batch:,.0f}"] for n, d, rate, batch in found]
    return table(["parameters", "tokens", "learning rate", "tokens of a step"], lines)


def power() -> str:
    """The Power scheduler's rates with the paper's a and b, for three batches."""
    seen = (1e9, 1e10, 1e11, 1e12)
    lines = []
    for rows in (128, 512, 2048):
        made = PowerLaw(highest=0.02, rows=rows, steps=1, a=4.6, tokens_per_step=1.0, decay=0.0)
        lines.append([str(rows), *(f"{made.highest * made(tokens):.4f}" for tokens in seen)])
    return table(["rows of a step", *(f"after {n / 1e9:,.0f} B tokens" for n in seen)], lines)


def main() -> None:
    """Writes the three tables."""
    said = f"`python benchmarks/{Path(__file__).name}`"
    write_between(PAGE, "betas", f"{said}; rows of {TOKENS} tokens, from beta2 0.999 at {ROWS[1]} rows.\n\n{betas()}")
    write_between(PAGE, "step law", f"{said}.\n\n{laws()}")
    write_between(PAGE, "power", f"{said}; a 4.6, b -0.51, at most 0.02.\n\n{power()}")


if __name__ == "__main__":
    main()
