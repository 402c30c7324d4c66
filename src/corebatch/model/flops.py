"""What a step computes, and what the device could: model FLOPs utilisation (MFU).

For one token, after Kaplan et al. 2020 (arXiv 2001.08361, section 2.1 and appendix B) and Chowdhery et al. 2022
(arXiv 2204.02311, appendix B), a multiplication and its addition counted as two:

    forward   2 N + 4 L d c            N weights that multiply activations, L layers, d = heads x head size,
    backward  2 N + 2 N' + 8 L d c     N' those of them that are trained, c positions attended to (mean)

Trained in full (N' = N) that is three forwards; with adapters alone (N' small) nearly two, since the gradients of
frozen weights are not computed. MFU counts what the model needs: no padding, no recomputation under checkpointing (that
would be hardware FLOPs utilisation), one forward to score a token however it is scored.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """FLOPs of one token.

    Attributes:
        weights: that multiply the activations of a token (N).
        trained_weights: those of them that are trained (N').
        attention: of a forward, for one position attended to, of the layers that attend to all: 4 L d.
        windows: the same of layers that attend to so many positions at most.
    """

    weights: float
    trained_weights: float
    attention: float
    windows: Mapping[int, float] = field(default_factory=dict)

    def attended(self, context: float) -> float:
        """Of a forward, of attention alone."""
        return self.attention * context + sum(
            cost * windowed_context(context, window) for window, cost in self.windows.items()
        )

    def forward(self, context: float) -> float:
        """Of a forward. `context`: how many positions a token attends to without a window, in the mean."""
        return 2 * self.weights + self.attended(context)

    def train(self, context: float) -> float:
        """Of a forward and a backward."""
        return 4 * self.weights + 2 * self.trained_weights + 3 * self.attended(context)

    def row(self, tokens: int) -> float:
        """Of a forward and a backward of one row."""
        return tokens * self.train(causal_context(tokens, 1))

    def step(self, *, scored: int, scored_rows: int, trained: int, trained_rows: int) -> float:
        """Of one step, from its tokens and rows over all ranks.

        Rows are taken to be equally long, which counts a little too little attention where they are not.
        """
        flops = scored * self.forward(causal_context(scored, scored_rows))
        return flops + trained * self.train(causal_context(trained, trained_rows))


def causal_context(tokens: int, rows: int) -> float:
    """How many positions a token attends to, in the mean, in rows of tokens / rows tokens: half of them."""
    return (tokens / rows + 1) / 2 if rows else 0.0


def windowed_context(context: float, window: int) -> float:
    """The same where a token sees at most `window` positions: in a row of T = 2 context - 1 tokens."""
    tokens = 2 * context - 1
    return context if tokens <= window else window - window * (window - 1) / (2 * tokens)


# ---- what the device could ------------------------------------------------------------------------------------------

_T = 1e12
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    # What the name matches; dense TFLOP/s with accumulation in float32, from NVIDIA's data sheets and white papers
    # (their figures "with sparsity" halved). A type that the tensor cores lack is left out and measured.
    (r"\bB200\b", {"bfloat16": 2250, "float16": 2250, "tf32": 1125, "float32": 75}),
    (r"\bH200 NVL\b", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"\bH200\b", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"\bH100 PCIe\b", {"bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51.2}),
    (r"\bH100 NVL\b", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"\bH100\b", {"bfloat16": 989.4, "float16": 989.4, "tf32": 494.7, "float32": 66.9}),
    (r"\bA100\b", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    (r"\bL40S\b", {"bfloat16": 362, "float16": 362, "tf32": 183, "float32": 91.6}),
    (r"\bL4\b", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"\bA10G\b", {"bfloat16": 70, "float16": 70, "tf32": 35, "float32": 35}),
    (r"\bA10\b", {"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2}),
    (r"\bV100-PCIE\b", {"float16": 112, "float32": 14}),
    (r"\bV100-SXM2\b", {"float16": 125, "float32": 15.7}),
    (r"\bT4\b", {"float16": 65, "float32": 8.1}),
    (r"\bRTX 4090$", {"bfloat16": 165.2, "float16": 165.2, "tf32": 82.6, "float32": 82.6}),
    (r"\bRTX 3090$", {"bfloat16": 71, "float16": 71, "tf32": 35.6, "float32": 35.6}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """FLOP/s of one device, and how they are known: "table", or "measured matmul float32"."""

    value: float
    how: str


def listed_peak(name: str, kind: str) -> float | None:
    """Dense peak FLOP/s of a GPU by the name that `torch.cuda.get_device_name` gives; None where unknown.

    Args:
        name: a part of a GPU (MIG) is unknown.
        kind: bfloat16, float16, tf32 or float32. GPUs without TF32 compute in float32 instead.
    """
    if " MIG " in f" {name} ":
        return None
    for pattern, peaks in _PEAKS:
        if re.search(pattern, name):
            found = peaks.get(kind, peaks["float32"] if kind == "tf32" else None)
            return None if found is None else found * _T
    return None


def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak:
    """Peak FLOP/s of the device for matrix products in this type: the table's, else measured once in a process."""
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        listed = listed_peak(torch.cuda.get_device_name(device), "tf32" if kind == "float32" and _tf32() else kind)
        if listed is not None:
            return Peak(value=listed, how="table")
    return Peak(value=measured_peak(device, dtype), how=f"measured matmul {kind}")


def _tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    # From PyTorch 2.9 on the old switch is an error where the new one was used.
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.08) -> float:
    """FLOP/s of the fastest of several square matrix products.

    The matrices grow until one product takes a fair part of `seconds`, so that a slow type costs no more time. A busy
    machine stretches products, most of them: of a few more at least one is whole, within ten times `seconds`.
    """
    best, size, most, fewest = 0.0, 128, 8192 if device.type == "cuda" else 2048, 24
    _timed_product(size, device, dtype)  # what a first product sets up
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or (count < fewest and spent < 10 * seconds):
        took = _timed_product(size, device, dtype)
        count += 1
        best = max(best, 2 * size**3 / took)
        if took < seconds / 30 and size < most:  # the next takes eight times as long
            size *= 2
    return best


def _timed_product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    finish(device)
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    finish(device)
    return max(time.perf_counter() - began, 1e-9)


def finish(device: torch.device) -> None:
    """Waits for the device: not in a step of training."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
