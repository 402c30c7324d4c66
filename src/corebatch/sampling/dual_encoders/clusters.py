"""Clusters of embeddings: balanced ones by halving, and k-means.

Shape suffixes: N rows, D dimensions, C clusters, S rows of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from corebatch.errors import ConfigError, DataError, InputError

ROUNDS, CLOSE = 20, 1e-4
"""Of one split or of k-means, at most; and by how much the mean similarity grows in a round that is not the last."""
AT_ONCE = 2**24
"""Numbers of a block."""

Encode = Callable[[list[str]], Any]
"""Embeddings of texts: an array or a Tensor [N, D]."""


def embed(encode: Any, texts: list[str]) -> Tensor:
    """float32 [N, D] on the CPU: unit embeddings of the texts, without a trace on the model's mode.

    Args:
        encode: a SentenceTransformer, or a function of a list of texts.

    Raises:
        ConfigError: neither is given.
        InputError: other shapes, or numbers that are not finite.
    """
    if hasattr(encode, "encode"):
        modes = [(module, module.training) for module in encode.modules()]
        try:
            made = encode.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        finally:
            for module, training in modes:
                module.training = training
    elif callable(encode):
        made = encode(texts)
    else:
        raise ConfigError(
            f"encode should be a SentenceTransformer, or a function of a list of texts. Found {type(encode).__name__}. "
            "(A sampler that was saved with training arguments has lost its encoder.)"
        )
    found = torch.as_tensor(made).detach().to("cpu", torch.float32)
    if found.ndim != 2 or len(found) != len(texts):
        raise InputError(f"Embeddings should be [{len(texts)}, D], one of each text. Found {tuple(found.shape)}.")
    if not bool(torch.isfinite(found).all()):
        bad = (~torch.isfinite(found).all(dim=1)).nonzero().flatten()[:8].tolist()
        raise InputError(f"Embeddings should be finite. Found others in rows {', '.join(map(str, bad))}.")
    return functional.normalize(found, dim=1)


def texts_of(dataset: Any, column: str | None) -> list[str]:
    """The texts of a column; None: of the first one.

    Raises:
        DataError: no such column, or it holds something else than texts.
    """
    names: Sequence[str] = getattr(dataset, "column_names", None) or list(dataset[0])
    name = names[0] if column is None else column
    if name not in names:
        raise DataError(f"Batches are made by the column {name!r}. Found the columns {', '.join(names)}.")
    values = [row[name] for row in dataset] if not hasattr(dataset, "column_names") else list(dataset[name])
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"The column {name!r} should hold texts. Found {type(value).__name__} in row {number}.")
    return values


def halved(vectors: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Balanced clusters of at most `most` rows, by halving again and again.

    Each split is a 2-means of unit vectors whose halves are equally large: rows are ordered by which of two centers
    they are nearer to, and cut in the middle (Prabhu et al. 2018, Parabel; it is what NGAME clusters by).

    Args:
        vectors: float [N, D], of length 1.

    Returns:
        LongTensor [N], rows cluster by cluster; how many are in each says `sizes_of_halves`.
    """
    rows = torch.arange(len(vectors))
    sizes = [len(vectors)]
    while max(sizes) > most:
        made: list[Tensor | None] = [None] * len(sizes)
        pieces = rows.split(sizes)
        for size in sorted(set(sizes)):  # a few, next to each other
            places = [place for place, found in enumerate(sizes) if found == size]
            together = torch.stack([pieces[place] for place in places])
            if size > most:
                together = _split(vectors, together, generator)
            for place, own in zip(places, together, strict=True):
                made[place] = own
        rows = torch.cat([own for own in made if own is not None])
        sizes = [half for size in sizes for half in ((size - size // 2, size // 2) if size > most else (size,))]
    return rows


def sizes_of_halves(count: int, most: int) -> list[int]:
    """The sizes of the clusters that `halved` makes of `count` rows, in their order."""
    if count <= most:
        return [count]
    return [*sizes_of_halves(count - count // 2, most), *sizes_of_halves(count // 2, most)]


def _split(vectors: Tensor, clusters: Tensor, generator: torch.Generator) -> Tensor:
    """The rows of clusters [C, S] in an order in which the first half is one of two: LongTensor [C, S]."""
    step = max(1, AT_ONCE // (clusters.shape[1] * vectors.shape[1]))
    return torch.cat([_split_block(vectors[part], part, generator) for part in clusters.split(step)])


def _split_block(own: Tensor, clusters: Tensor, generator: torch.Generator) -> Tensor:
    """As `_split`, of embeddings `own` [C, S, D]."""
    first = clusters.shape[1] - clusters.shape[1] // 2
    starts = torch.rand(clusters.shape, generator=generator).argsort(dim=1)[:, :2]
    centers = own.gather(1, starts.unsqueeze(2).expand(-1, -1, own.shape[2]))
    before = torch.full((len(clusters),), -torch.inf)
    order = torch.zeros_like(clusters)
    for _ in range(ROUNDS):
        nearer = (own @ (centers[:, 0] - centers[:, 1]).unsqueeze(2)).squeeze(2)
        order = nearer.argsort(dim=1, descending=True, stable=True)
        half = torch.zeros(clusters.shape).scatter_(1, order[:, :first], 1.0).unsqueeze(1)
        sums = torch.cat([half @ own, (1 - half) @ own], dim=1)
        similar = sums.norm(dim=2).sum(dim=1) / clusters.shape[1]
        centers = functional.normalize(sums, dim=2)
        if bool((similar - before < CLOSE).all()):
            break
        before = similar
    return clusters.gather(1, order)


def k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """LongTensor [N]: the cluster of each row, by Lloyd's rounds from rows drawn as centers; some may be empty.

    Args:
        vectors: float [N, D].
        count: clusters, at most N.
    """
    centers = vectors[torch.randperm(len(vectors), generator=generator)[:count]]
    nearest = torch.zeros(len(vectors), dtype=torch.long)
    for _ in range(ROUNDS):
        before = nearest
        nearest = _nearest(vectors, centers)
        if torch.equal(before, nearest):
            break
        counts = nearest.bincount(minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        centers = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centers)
    return nearest


def _nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each row, the first of equal ones."""
    squares = centers.square().sum(dim=1)
    step = max(1, AT_ONCE // len(centers))
    return torch.cat([(squares - 2 * part @ centers.T).argmin(dim=1) for part in vectors.split(step)])
