"""Near-duplicates, by shared pieces of text (MinHash) or by embedding: one of each is kept.

Shape suffixes: N rows, P columns, B rows of a block, C bands, H hash functions.
"""

from __future__ import annotations

import math
import re
import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.errors import ConfigError, MissingExtraError
from corebatch.options import check_count, near
from corebatch.selectors.checks import check_choice, check_flag, check_number
from corebatch.selectors.kernels.inclusion import random_order
from corebatch.subset.banding import Similar, repeats_exactly, repeats_nearly
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem
from corebatch.subset.matrix import Matrix

_MISSED = 0.05  # of the pairs that are exactly as similar as the threshold
_BANDS = 64
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class NearDuplicatesSubset(SubsetMethod):
    """Leave out rows that repeat one that is kept, exactly or nearly; weights of one.

    `text`: Jaccard similarity of sets of 13 characters (lower case, no punctuation, single spaces) by MinHash, as in
    SlimPajama (Soboleva et al. 2023; Shen et al., "SlimPajama-DC", arXiv 2309.10818): 128 hash functions and a
    threshold of 0.8. Buckets of nearly as much recall as can be had are looked at, and a pair counts if its estimate is
    above the threshold; SlimPajama removes by buckets alone, which miss six in ten of the pairs at the threshold.
    `embedding`: cosines, as AM-DeepSeek-R1-Distilled (arXiv 2503.19633) and SemDeDup (Abbas et al., arXiv 2303.09540)
    remove; buckets are signs of random projections (Charikar 2002) instead of clusters, so that time grows with N. They
    hold 19 of 20 pairs at the threshold, and nearly all above.

    Which row of several is kept: of the source named first in `priority`, then of the first source by name, then the
    first row. At most as many are kept as asked for, drawn uniformly from what is left; `keep` 1 keeps all that repeat
    nothing. It follows the pool less its repetitions: what was written ten times counts once.

    Args:
        by: what is compared.
        threshold: from which similarity on a row repeats another; None: 0.8 for text, 0.95 for an embedding.
        scope: "global": across sources; "local": within each (the two that SlimPajama-DC compares).
        priority: names of sources.
        ngram: characters of a piece of text.
        hashes: H, for text.
        center: embeddings less their mean. States of language models lie in a narrow cone, all of them near to each
            other; take false for an encoder that is trained for cosines.
    """

    by: Literal["text", "embedding"] = "text"
    threshold: float | None = None
    scope: Literal["global", "local"] = "global"
    priority: tuple[str, ...] = ()
    ngram: int = 13
    hashes: int = 128
    center: bool = True

    name: ClassVar[str] = "near_duplicates"

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("text", "embedding"))
        check_choice("scope", self.scope, ("global", "local"))
        check_count("ngram", self.ngram)
        check_count("hashes", self.hashes, least=16)
        check_flag("center", self.center)
        if self.threshold is not None:
            check_number("threshold", self.threshold, low=0.1, high=1.0)
        if not isinstance(self.priority, list | tuple) or not all(isinstance(name, str) for name in self.priority):
            raise ConfigError(f"`priority` should be a list of names of sources. Found {self.priority!r}.")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"texts" if self.by == "text" else "features"})

    @property
    def exact(self) -> bool:
        return False

    def _choose(self, problem: SubsetProblem) -> Subset:
        order_N = self._order(problem)
        sources_N = problem.sources.numpy()[order_N]
        repeats_N = np.full(problem.count, -1)
        exactly = 0
        parts = [np.arange(problem.count)]
        if self.scope == "local":
            parts = [np.flatnonzero(sources_N == source) for source in np.unique(sources_N)]
        for part in parts:
            rows = order_N[part]
            same = repeats_exactly(map(self._content(problem), rows.tolist()), len(rows))
            repeats_N[part] = np.where(same >= 0, part[same], -1)
            exactly += int((same >= 0).sum())
            left = part[same < 0]
            again = repeats_nearly(*self._hashed(problem, order_N[left]))
            repeats_N[left[again >= 0]] = left[again[again >= 0]]
        dropped = np.flatnonzero(repeats_N >= 0)
        kept = torch.from_numpy(order_N[repeats_N < 0])
        told = {
            "exact": exactly,
            "near": len(dropped) - exactly,
            "across_sources": int((sources_N[dropped] != sources_N[repeats_N[dropped]]).sum()),
            "repeat_nothing": len(kept),
        }
        if len(kept) > problem.budget:
            kept = kept.sort().values[random_order(problem.generator, len(kept))[: problem.budget]]
        return Subset(rows=kept, told=told)

    def _order(self, problem: SubsetProblem) -> NDArray[np.int64]:
        """The rows as they are preferred."""
        names = problem.source_names
        for name in self.priority:
            if name not in names:
                known = ", ".join(names)
                raise ConfigError(f"`priority` should name sources: {known}. Found {name!r}{near(name, names)}.")
        places = {name: place for place, name in enumerate(dict.fromkeys((*self.priority, *names)))}
        return np.argsort(np.array([places[name] for name in names])[problem.sources.numpy()], kind="stable")

    def _content(self, problem: SubsetProblem) -> Callable[[int], bytes]:
        """What an exact repetition has in common, from a row."""
        if self.by == "text":
            texts: Any = problem.texts
            return lambda row: texts[row].encode("utf-8", "surrogatepass")
        features: Any = problem.features
        return lambda row: features.take(torch.tensor([row])).numpy().tobytes()

    def _hashed(self, problem: SubsetProblem, rows: NDArray[np.int64]) -> tuple[NDArray[np.integer], Similar]:
        """Keys of bands, and what compares rows by their places in `rows`."""
        threshold = self.threshold
        if self.by == "text":
            assert problem.texts is not None
            return minhash(problem.texts, rows, 0.8 if threshold is None else threshold, self.ngram, self.hashes)
        assert problem.features is not None
        place = torch.from_numpy(rows)
        wanted = 0.95 if threshold is None else threshold
        return hyperplanes(problem.features, place, wanted, self.center, problem.generator)


def minhash(
    texts: Sequence[str], rows: NDArray[np.int64], threshold: float, ngram: int, hashes: int
) -> tuple[NDArray[np.int64], Similar]:
    """Signatures of some texts: keys int64 [N, C], and estimates of Jaccard similarity.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise MissingExtraError("Near-duplicates of texts need datasketch: pip install 'corebatch[subset]'.") from error
    # Candidates are compared, so recall counts for more than buckets of nothing but duplicates.
    lsh = MinHashLSH(threshold=min(threshold, 0.99), num_perm=hashes, weights=(0.1, 0.9))
    empty = MinHash(num_perm=hashes, hashfunc=zlib.crc32)
    signatures_NH = np.empty((len(rows), hashes), dtype=np.uint32)
    keys_NC = np.empty((len(rows), lsh.b), dtype=np.int64)
    factor_R = np.random.default_rng(0).integers(1, 2**63, lsh.r, dtype=np.uint64) | np.uint64(1)
    for place, row in enumerate(rows.tolist()):
        sketch = empty.copy()
        sketch.update_batch(pieces(texts[row], ngram))
        signatures_NH[place] = sketch.hashvalues
        bands_CR = signatures_NH[place, : lsh.b * lsh.r].reshape(lsh.b, lsh.r)
        keys_NC[place] = (bands_CR.astype(np.uint64) * factor_R).sum(axis=1).view(np.int64)  # modulo 2^64
    least = math.ceil(threshold * hashes - 1e-9)
    return keys_NC, lambda row, others: (signatures_NH[others] == signatures_NH[row]).sum(axis=1) >= least


def pieces(text: str, ngram: int) -> set[bytes]:
    """The pieces of so many characters that a text has, or the text if it has no more."""
    plain = re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
    raw, width = plain.encode("utf-32-le", "surrogatepass"), 4 * ngram  # four bytes for each character
    return {raw[start : start + width] for start in range(0, max(1, len(raw) - width + 1), 4)}


def hyperplanes(
    features: Matrix, rows: Tensor, threshold: float, center: bool, generator: torch.Generator
) -> tuple[NDArray[np.int32], Similar]:
    """Signs of random projections of some rows: keys int32 [N, C], and cosines."""
    bits, bands = bits_and_bands(threshold, len(rows))
    mean_P = torch.zeros(features.width, dtype=torch.float64)
    if center:
        mean_P = torch.stack([block.double().sum(dim=0) for _, block in features.blocks()]).sum(dim=0) / len(features)
    mean_P, planes = mean_P.float(), torch.randn(features.width, bands * bits, generator=generator)
    powers = 2 ** torch.arange(bits)
    keys_NC = np.empty((len(rows), bands), dtype=np.int32)
    lengths_N = torch.empty(len(rows))
    size = max(1, 2**22 // max(features.width, bands * bits))
    for start, part in zip(range(0, len(rows), size), rows.split(size), strict=True):
        block_BP = features.take(part) - mean_P
        lengths_N[start : start + size] = torch.linalg.vector_norm(block_BP, dim=1)
        signs = (block_BP @ planes > 0).view(len(part), bands, bits)
        keys_NC[start : start + size] = (signs * powers).sum(dim=2).int().numpy()

    def similar(row: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        places = torch.from_numpy(others)
        products = (features.take(rows[places]) - mean_P) @ (features.take(rows[row : row + 1])[0] - mean_P)
        lengths = lengths_N[places] * lengths_N[row]
        found: NDArray[np.bool_] = ((products >= (threshold - 1e-6) * lengths) & (lengths > 0)).numpy()
        return found

    return keys_NC, similar


def bits_and_bands(threshold: float, count: int) -> tuple[int, int]:
    """How many signs a key has, and how many keys: so that pairs at the threshold are missed by `_MISSED` only.

    A sign is shared with probability 1 - angle / pi. Unlike rows share log2(N) signs about once, so keys are a little
    longer, unless the threshold is so low that more than `_BANDS` of them would be needed.
    """
    shared = 1.0 - math.acos(min(threshold, 0.999)) / math.pi
    most = math.log(1.0 - _MISSED ** (1.0 / _BANDS)) / math.log(shared)
    bits = max(1, min(math.ceil(math.log2(count + 1)) + 2, math.floor(most), 30))
    return bits, max(1, math.ceil(math.log(_MISSED) / math.log1p(-(shared**bits)) - 1e-9))
