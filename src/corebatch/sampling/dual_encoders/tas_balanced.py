"""TAS-Balanced: topic-aware batches with balanced margins (Hofstaetter et al. 2021, arXiv 2104.06967).

Queries are clustered once, by a dual encoder that was trained before. A batch takes its queries from one topic, so that
its in-batch negatives are near (TAS, section 3.1); and for each query one of its pairs of passages, so drawn that the
teacher's margins are spread evenly (Balanced, section 3.2): the range of the query's margins is cut into bins of equal
width, a bin that has pairs is drawn evenly, then a pair of it.

    margin of a pair = the teacher's score of (query, positive) - of (query, negative)

Topics are drawn evenly, whatever their size, so queries of small topics come more often; pairs of rare margins come
more often too. Both are meant, and nothing undoes them: the loss follows this distribution, not the data's.

Where we differ from sebastian-hofstaetter/matchmaker: a query comes once in a batch, also where several topics are
needed to fill it, since its own passage would be a negative; queries of one pair are kept; an epoch has as many rows as
there are queries, and its draws depend on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from corebatch.errors import ConfigError, DataError
from corebatch.options import check_count
from corebatch.sampling.dual_encoders.clusters import embed, k_means, texts_of
from corebatch.seeds import seeded


@dataclass(frozen=True, kw_only=True)
class TasBalanced:
    """The setting: what `SentenceTransformerTrainingArguments(batch_sampler=...)` takes.

    Attributes:
        encode: a dual encoder that knows topics, or a function of a list of texts that gives their embeddings; not
            looked at after the first call. Rows of one text are pairs of one query.
        column: with the queries; None: the first.
        margin: the column with the teacher's margin, or with its scores of the positive and of the negative; None:
            pairs of a query are drawn evenly ("random" in the official code).
        topics: clusters of queries; the paper has 2,000 for 400,000.
        per_batch: topics of a batch.
        bins: of margins.
    """

    encode: Any
    column: str | None = None
    margin: str | None = "label"
    topics: int = 2000
    per_batch: int = 1
    bins: int = 10

    def __post_init__(self) -> None:
        for name in ("topics", "per_batch", "bins"):
            check_count(name, getattr(self, name))

    def __getstate__(self) -> dict[str, Any]:
        """Without the encoder: a Trainer saves its arguments, and these with them."""
        return {**self.__dict__, "encode": None}

    def __call__(
        self, dataset: Any, batch_size: int, drop_last: bool = False, seed: int | None = 0, **_: Any
    ) -> TasBalancedBatches:
        """The sampler of a data set; the trainer calls it, with arguments of its own that it has no use for."""
        numbers: dict[str, int] = {}
        queries = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts_of(dataset, self.column)])
        if self.topics > len(numbers):
            raise ConfigError(f"topics should be at most the queries, {len(numbers)}. Found {self.topics}.")
        if self.per_batch > batch_size:
            raise ConfigError(f"per_batch should be at most the batch size, {batch_size}. Found {self.per_batch}.")
        generator = seeded(seed or 0, "topics")
        topics = k_means(embed(self.encode, list(numbers)), self.topics, generator)
        if self.margin is None:
            bins = torch.zeros_like(queries)
        else:
            bins = margin_bins(queries, margins_of(dataset, self.margin), self.bins)
        return TasBalancedBatches(
            queries, topics, bins, batch_size=batch_size, per_batch=self.per_batch, drop_last=drop_last, seed=seed or 0
        )


def margins_of(dataset: Any, column: str) -> Tensor:
    """float64 [N]: the column's margins, or of its scores the first less the second.

    Raises:
        DataError: no such column, or something else than finite numbers in it.
    """
    names: Sequence[str] = getattr(dataset, "column_names", None) or list(dataset[0])
    if column not in names:
        raise DataError(
            f"Margins of the teacher should be in the column {column!r}. Found the columns {', '.join(names)}. Without "
            "a teacher: margin=None."
        )
    values = list(dataset[column]) if hasattr(dataset, "column_names") else [row[column] for row in dataset]
    try:
        found = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The column {column!r} should hold margins, or two scores each. Found: {error}") from None
    if found.ndim == 2 and found.shape[1] == 2:
        found = found[:, 0] - found[:, 1]
    if found.ndim != 1 or not bool(torch.isfinite(found).all()):
        bad = "others" if found.ndim == 1 else f"{found.shape[1]} numbers in a row"
        raise DataError(f"The column {column!r} should hold finite margins, or two scores each. Found {bad}.")
    return found


def margin_bins(queries: Tensor, margins: Tensor, bins: int) -> Tensor:
    """LongTensor [N]: for each pair its bin among `bins` of equal width from its query's least to its largest margin.

    Args:
        queries: LongTensor [N], the query of each pair, from 0.
        margins: float64 [N].
    """
    count = int(queries.max()) + 1
    least = torch.full((count,), torch.inf, dtype=torch.float64).scatter_reduce(0, queries, margins, "amin")
    largest = torch.full((count,), -torch.inf, dtype=torch.float64).scatter_reduce(0, queries, margins, "amax")
    width = (largest - least)[queries]
    share = torch.where(width > 0, (margins - least[queries]) / width, torch.zeros(()).double())
    return (share * bins).long().clamp(max=bins - 1)


class TasBalancedBatches(Sampler[list[int]]):
    """Batches of pairs: queries of one topic, or of a few, each with a pair out of an evenly drawn bin.

    Args:
        queries: LongTensor [N], the query of each pair, from 0 to Q - 1.
        topics: LongTensor [Q], the topic of each query.
        bins: LongTensor [N], the bin of each pair.
        batch_size, drop_last: as a loader has them.
        per_batch: topics of a batch; more where they have too few queries.
        seed: of all randomness.

    Attributes:
        epoch: whose batches are next; a Trainer calls `set_epoch`.

    Raises:
        DataError: fewer queries than a batch has rows.
    """

    def __init__(
        self,
        queries: Tensor,
        topics: Tensor,
        bins: Tensor,
        *,
        batch_size: int,
        per_batch: int = 1,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size > len(topics):
            raise DataError(f"A batch of {batch_size} needs as many queries. Found {len(topics)}.")
        self.batch_size, self.drop_last, self.epoch = batch_size, drop_last, 0
        self._each, self._seed, self._count = max(1, batch_size // per_batch), seed, len(topics)
        self._topics = [(topics == topic).nonzero().flatten() for topic in topics.unique().tolist()]
        self._pairs: list[dict[int, list[int]]] = [{} for _ in range(len(topics))]
        for row, (query, own) in enumerate(zip(queries.tolist(), bins.tolist(), strict=True)):
            self._pairs[query].setdefault(own, []).append(row)

    def __len__(self) -> int:
        whole, rest = divmod(self._count, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(len(self)):
            generator = seeded(self._seed, self.epoch, number, "batch")
            size = min(self.batch_size, self._count - number * self.batch_size)
            yield [self._pair(query, generator) for query in self._queries(size, generator)]

    def _queries(self, size: int, generator: torch.Generator) -> list[int]:
        """The queries of a batch: topics come evenly, and of each a part, until there are enough."""
        found: dict[int, None] = {}
        while len(found) < size:
            topic = self._topics[_draw(len(self._topics), generator)]
            drawn = topic[torch.randperm(len(topic), generator=generator)].tolist()
            new = [query for query in drawn[: self._each] if query not in found]
            found.update(dict.fromkeys(new[: size - len(found)]))
        return list(found)

    def _pair(self, query: int, generator: torch.Generator) -> int:
        bins = list(self._pairs[query].values())
        own = bins[_draw(len(bins), generator)]
        return own[_draw(len(own), generator)]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
