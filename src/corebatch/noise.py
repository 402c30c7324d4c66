"""The noise of a gradient: how large a batch has to be before its gradient is more than noise.

G is the gradient of what a step claims, and tr Sigma the variance of a mean of one row, summed over all parameters, so
that of B independent rows E|mean|^2 = |G|^2 + tr Sigma / B. Their ratio tr Sigma / |G|^2 is the simple noise scale of
McCandlish et al. (2018, arXiv 1812.06162, equation 2.9): the rows of which signal and noise are equal. Their critical
batch size is a fit to whole runs of several batch sizes, which no measurement of gradients gives; the two agree within
a factor of about 2 to 4 there. In Adam's metric each gradient is divided by the root of the second moments first.

A mean over tokens is a ratio, sum_i g_i / sum_i l_i, with the summed gradient g_i of row i and its size l_i (trained
tokens, times the objective's weight). Its variance is that of g_i - l_i G over the mean size squared (Cochran 1977,
Sampling techniques, section 6.4).

Shape suffixes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.errors import InputError

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
_SIDE = 16  # k of a sketch


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is known of the noise of a gradient.

    Attributes:
        signal: an estimate of |G|^2; by chance it may be negative.
        trace: of tr Sigma, the variance of a mean of one row: that of B independent rows is trace / B.
        rows: how many it was estimated of.
    """

    signal: float
    trace: float
    rows: int

    @property
    def scale(self) -> float:
        """The simple noise scale trace / signal, in rows; infinite where no signal was seen."""
        return max(0.0, self.trace) / self.signal if self.signal > 0 else math.inf


def noise_of_parts(squared_parts: Sequence[float], shares: Sequence[float], squared_whole: float, rows: int) -> Noise:
    """From the parts of one step: its micro-batches, or its rows.

    With S = sum_j s_j and E s_j = p_j G, independent of each other,

        E(|S|^2 - sum_j |s_j|^2) = (1 - sum_j p_j^2) |G|^2        E|S|^2 = |G|^2 + tr Sigma / rows

    which for two parts of a mean are the estimators of McCandlish et al. (2018, appendix A.1). Parts that are sorted by
    length have means of their own, which makes the signal too small (`within_sorted`); rows that were chosen jointly
    are not independent.

    Args:
        squared_parts: |s_j|^2.
        shares: p_j >= 0, the part's trained tokens over the whole's; they sum to 1.
        squared_whole: |S|^2.
        rows: of the whole.

    Raises:
        InputError: fewer than two parts of which something is trained, shares that do not sum to 1, a length that is
            not finite.
    """
    if len(squared_parts) != len(shares):
        raise InputError(f"Each part should have a share. Found {len(squared_parts)} parts, {len(shares)} shares.")
    if min(shares, default=0) < 0 or not math.isclose(sum(shares), 1, rel_tol=1e-6):
        raise InputError(f"Shares should be at least 0 and sum to 1. Found {shares}.")
    return noise_of_sums(math.fsum(squared_parts), math.fsum(share**2 for share in shares), squared_whole, rows)


def noise_of_sums(squared_parts: float, squared_shares: float, squared_whole: float, rows: int) -> Noise:
    """The same from sum_j |s_j|^2 and sum_j p_j^2, which ranks can add up; of sorted parts from sum_j |s_j|^2 less
    what `within_sorted` gives, and 0.

    Raises:
        InputError: one part or one row alone, a length that is not finite.
    """
    if not squared_shares < 1 - 1e-9 or rows < 2:
        raise InputError(
            f"Noise is told by two parts and two rows at least. Found {rows} rows in parts whose squared shares sum to "
            f"{squared_shares:g}."
        )
    if not (math.isfinite(squared_parts) and math.isfinite(squared_whole)):
        raise InputError(f"Squared lengths should be finite. Found {squared_parts} of parts, {squared_whole} of all.")
    signal = (squared_whole - squared_parts) / (1 - squared_shares)
    return Noise(signal=signal, trace=rows * (squared_whole - signal), rows=rows)


def within_sorted(gram_JJ: Tensor, shares_J: Tensor) -> Tensor:
    """sum_j p_j^2 |G_j|^2 of a step's parts in the order of their rows' lengths, E s_j = p_j G_j: what products of
    different parts leave out of |G|^2 = sum_jk p_j p_k G_j . G_k. A scalar.

    As for the variance of a systematic sample (Wolter 1984, An investigation of some estimators of variance for
    systematic sampling), neighbors stand for what cannot be seen: G_j changes smoothly with length, so that the mean of
    G_j . G_k over parts that are d apart is c_0 - a d^2 for small d, and c_0 = (4 c_1 - c_2) / 3 (Richardson 1911).

    Args:
        gram_JJ: s_j . s_k of three parts or more; the diagonal is not used.
        shares_J: p_j > 0, or what is in proportion to them.
    """
    near, far = (
        gram_JJ.diagonal(apart).sum() / (shares_J[:-apart] * shares_J[apart:]).sum().to(gram_JJ) for apart in (1, 2)
    )
    return shares_J.square().sum() * (4 * near - far) / 3


class Sketches:
    """Inner products of gradients [R, C] from [k, k] numbers of each: those of P g Q / k with random signs P and Q are
    right in the mean over signs, and off by |g| |h| sqrt(2 / k) at most in standard deviation (Alon, Matias and Szegedy
    1999, The space complexity of approximating the frequency moments); over several parameters errors average.

    Args:
        parameters: whose gradients are to come.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        most = max((max(_matrix(parameter).shape) for parameter in parameters), default=0)
        signs = torch.randint(2, (2, _SIDE, most), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        self._signs = {torch.device("cpu"): 2 * signs - 1}

    def of(self, gradient: Tensor) -> Tensor:
        """[k^2], at least float32."""
        whole = gradient.detach().coalesce() if gradient.is_sparse else gradient.detach()
        values = _matrix(whole.values() if whole.is_sparse else whole)
        if values.device not in self._signs:
            self._signs[values.device] = self._signs[torch.device("cpu")].to(values.device)
        left, right = self._signs[values.device]
        left = left[:, whole.indices()[0]] if whole.is_sparse else left[:, : len(values)]
        folded = left.to(values) @ values @ right[:, : values.shape[1]].to(values).T
        return folded.to(torch.promote_types(values.dtype, torch.float32)).flatten() / _SIDE


def _matrix(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1, gradient.shape[-1]) if gradient.ndim > 1 else gradient.reshape(-1, 1)


def length(gradient: Tensor) -> Tensor:
    """|gradient|, a scalar, row by row: a sum of many millions of squares loses small ones in float32."""
    values = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
    wide = torch.promote_types(values.dtype, torch.float32)
    rows = torch.linalg.vector_norm(values, dim=-1, dtype=wide) if values.ndim > 1 else values
    return torch.linalg.vector_norm(rows, dtype=wide)


def noise_of_rows(gram_NN: Tensor, sizes_N: Tensor | None = None) -> Noise:
    """From the exact gradients of independent rows, both unbiased U-statistics where sizes are equal.

    The signal is sum g_i . g_k / sum l_i l_k over pairs of different rows: the squared mean less trace / N would be too
    large by a small share of the trace, which may be many times the signal. The trace is sum |g_i - l_i mean|^2 /
    (1 - p_i), over N times the squared mean size: a row is the nearer to the mean the larger its share p_i of it is
    (MacKinnon and White 1985, Some heteroskedasticity-consistent covariance matrix estimators, HC2).

    Args:
        gram_NN: inner products g_i . g_k of the rows' summed gradients, each times the objective's weight.
        sizes_N: l_i >= 0, what each row counts; None: equally much.

    Raises:
        InputError: fewer than two rows of sizes above zero, other shapes, values that are not finite, sizes below zero.
    """
    gram, sizes = _checked(gram_NN, sizes_N)
    count, total = len(gram), sizes.sum()
    along = gram.sum(dim=1) / total  # g_i . mean
    squared_mean = along.sum() / total
    off = gram.diagonal() - 2 * sizes * along + sizes.square() * squared_mean  # |g_i - l_i mean|^2
    trace = (off / (1 - sizes / total)).sum() * count / total.square()
    signal = (gram.sum() - gram.trace()) / (total.square() - sizes.square().sum())
    return Noise(signal=float(signal), trace=float(trace), rows=count)


def _checked(gram_NN: Tensor, sizes_N: Tensor | None) -> tuple[Tensor, Tensor]:
    gram = gram_NN.detach().double().cpu()
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise InputError(f"The Gram matrix should be [N, N] with N of at least 2. Found {list(gram.shape)}.")
    sizes = torch.ones(len(gram), dtype=torch.float64) if sizes_N is None else sizes_N.detach().double().cpu()
    if sizes.shape != gram.shape[:1]:
        raise InputError(f"Sizes should be [{len(gram)}], one a row. Found {list(sizes.shape)}.")
    if not (gram.isfinite().all() and sizes.isfinite().all()):
        raise InputError("The Gram matrix and sizes should be finite. Found NaN or infinite values.")
    if sizes.min() < 0 or int((sizes > 0).sum()) < 2:
        raise InputError(f"Sizes should be at least 0, and two above. Found {sizes.min():g} to {sizes.max():g}.")
    return gram, sizes


def mean_noise(found: Sequence[Noise]) -> Noise:
    """The mean of independent estimates: of signal and trace apart, since a mean of ratios is biased."""
    if not found:
        raise InputError("A mean of noise should be of one estimate at least. Found none.")
    count = len(found)
    return Noise(
        signal=math.fsum(each.signal for each in found) / count,
        trace=math.fsum(each.trace for each in found) / count,
        rows=sum(each.rows for each in found),
    )


# ---- intervals -------------------------------------------------------------------------------------------------------


def interval_of_rows(
    gram_NN: Tensor, sizes_N: Tensor | None = None, *, groups: int = 32, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the scale that `noise_of_rows` gives: a jackknife over random groups of rows.

    Args:
        groups: how many the rows are dealt out to, at most; each is left out once.
        seed: of the dealing.

    Raises:
        InputError: fewer than 8 rows; see also `noise_of_rows`.
    """
    gram, sizes = _checked(gram_NN, sizes_N)
    count = len(gram)
    if count < 8:
        raise InputError(f"An interval of the noise scale needs 8 rows at least. Found {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group = torch.empty(count, dtype=torch.long)
    group[order] = torch.arange(count) % min(groups, count)
    kept = [(group != left_out).nonzero()[:, 0] for left_out in range(min(groups, count))]
    return _jackknife(noise_of_rows(gram, sizes), [noise_of_rows(gram[rows][:, rows], sizes[rows]) for rows in kept])


def interval_of_steps(found: Sequence[Noise]) -> tuple[float, float]:
    """The 95 % interval of the scale of `mean_noise(found)`, of independent estimates.

    Raises:
        InputError: fewer than 4 of them.
    """
    if len(found) < 4:
        raise InputError(f"An interval of the noise scale needs 4 estimates at least. Found {len(found)}.")
    whole = mean_noise(found)
    return _jackknife(whole, [mean_noise([*found[:place], *found[place + 1 :]]) for place in range(len(found))])


def _jackknife(whole: Noise, without: Sequence[Noise]) -> tuple[float, float]:
    """Fieller's interval (1954, Some problems in interval estimation) of trace / signal, with the jackknife's
    covariance of both: unlike whole / error it is right where the signal hardly shows, and infinite where it does not.

    Args:
        without: estimates, each of all but one group.
    """
    count = len(without)
    pairs = torch.tensor([(each.trace, each.signal) for each in without], dtype=torch.float64)
    off = pairs - pairs.mean(dim=0)
    (top, cross), (_, bottom) = ((count - 1) / count * off.T @ off * _quantile(count - 1) ** 2).tolist()
    trace, signal = whole.trace, whole.signal
    # All c with (trace - c signal)^2 <= t^2 Var(trace - c signal): a c^2 - 2 b c + d <= 0.
    a, b, d = signal**2 - bottom, trace * signal - cross, trace**2 - top
    root = math.sqrt(max(0.0, b * b - a * d))
    if a > 0 >= signal:
        return math.inf, math.inf
    low = d / (b + root) if d > 0 and b + root > 0 else 0.0
    return low, (b + root) / a if a > 0 else math.inf


def _quantile(freedom: int) -> float:
    """Student's 97.5 % point, within 0.01 from 3 degrees of freedom on (the series in 1 / freedom of Fisher and Cornish
    1960)."""
    z = _Z95
    third = 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    second = 5 * z**5 + 16 * z**3 + 3 * z
    return z + (z**3 + z) / (4 * freedom) + second / (96 * freedom**2) + third / (384 * freedom**3)


# ---- over a run ------------------------------------------------------------------------------------------------------


class RunningNoise:
    """Exponential averages over steps, of signal and trace apart (McCandlish et al. 2018, appendix A.1), each divided
    by the weights that it has so far, so that early ones are not too small.

    Args:
        keep: the share of the average that is left after a step, in [0, 1): 0.95 averages about the last 20 steps.
    """

    def __init__(self, keep: float = 0.95) -> None:
        if not 0 <= keep < 1:
            raise InputError(f"keep should be at least 0 and below 1. Found {keep}.")
        self.keep = keep
        self._sums = torch.zeros(4, dtype=torch.float64)  # signal, trace, rows, weights

    def update(self, found: Noise) -> None:
        """Takes a step's estimate in."""
        now = torch.tensor([found.signal, found.trace, found.rows, 1.0], dtype=torch.float64)
        self._sums = self.keep * self._sums + (1 - self.keep) * now

    @property
    def noise(self) -> Noise | None:
        """The average; None before the first step."""
        signal, trace, rows, weights = self._sums.tolist()
        if not weights:
            return None
        return Noise(signal=signal / weights, trace=trace / weights, rows=round(rows / weights))

    @property
    def scale(self) -> float | None:
        """The average trace over the average signal; None before the first step."""
        return None if self.noise is None else self.noise.scale

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"sums": self._sums.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint; nothing of one that knows no noise."""
        self._sums = state["sums"].double().clone() if "sums" in state else torch.zeros_like(self._sums)
