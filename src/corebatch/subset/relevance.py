"""Relevance to a target set, by hidden states (RDS+) or by words (BM25).

Shape suffixes: Q rows of the target, N rows of the data set, B rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from corebatch.errors import InputError, MissingExtraError
from corebatch.selectors.checks import check_choice
from corebatch.subset.base import Follows, Subset, SubsetMethod, SubsetProblem
from corebatch.subset.nearest import Tiles, cosines, directions, round_robin, windows

_CHUNK = 1024  # texts that are cut into words at a time


@dataclass(frozen=True, kw_only=True)
class RelevanceSubset(SubsetMethod):
    """Keep the rows that are most similar to a target set, with weights of one.

    `embedding` is RDS+ (Ivison et al., "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807, algorithm
    1): cosines of hidden states, and the rows of the target name their most similar row in turn, a turn being lost when
    that row is kept already. Their states are means weighted by position (scorer `representation`, pooling
    `by_position`); the features given decide. `words` is Okapi BM25 in Lucene's variant (Kamphuis et al. 2020; k1 =
    1.5, b = 0.75) over lower-cased words of two letters and more, without English stop words; each text of the target
    is a query.

    The index of words takes 20 bytes for each row and word of the target that is in it; words that the target has not
    only count in the length of a row. Biased on purpose: it follows the target.

    Args:
        by: what is compared.
        rule: "round_robin" as above: all of the target is served. "mean": the rows whose mean similarity to the target
            is largest, in one pass.
    """

    by: Literal["embedding", "words"] = "embedding"
    rule: Literal["round_robin", "mean"] = "round_robin"

    name: ClassVar[str] = "relevance"
    follows: ClassVar[Follows] = "target"

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("embedding", "words"))
        check_choice("rule", self.rule, ("round_robin", "mean"))

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"features", "target"} if self.by == "embedding" else {"texts", "target_texts"})

    def _choose(self, problem: SubsetProblem) -> Subset:
        tiles, queries = self._embedded(problem) if self.by == "embedding" else self._worded(problem)
        turns = windows(tiles, queries, problem.count, problem.budget)
        return Subset(rows=round_robin(turns, problem.count, problem.budget), told={"queries": queries})

    def _embedded(self, problem: SubsetProblem) -> tuple[Tiles, int]:
        assert problem.features is not None
        assert problem.target is not None
        units_QP = directions(torch.cat([block for _, block in problem.target.blocks()]))
        if self.rule == "mean":
            units_QP = units_QP.mean(dim=0, keepdim=True)
        return cosines(units_QP, problem.features), len(units_QP)

    def _worded(self, problem: SubsetProblem) -> tuple[Tiles, int]:
        assert problem.texts is not None
        assert problem.target_texts is not None
        queries = list(_in_words(problem.target_texts))
        if self.rule == "mean":
            queries = [[word for query in queries for word in query]]
        tiles, asked = bm25(problem.texts, queries)
        return tiles, asked


def bm25(texts: Sequence[str], queries: Sequence[Sequence[str]]) -> tuple[Tiles, int]:
    """Scores of texts by queries of words; queries that share no word with the texts are left out.

    Returns:
        The scores, and how many queries there are.

    Raises:
        InputError: no query shares a word with the texts.
        MissingExtraError: bm25s is not installed.
    """
    vocabulary = {"": 0}
    for query in queries:
        for word in query:
            vocabulary.setdefault(word, len(vocabulary))
    documents = _Documents(texts, vocabulary)
    if not any(any(numbers) for numbers in documents):
        raise InputError("No word of `target_texts` is in `texts`. Relevance by words needs one that is in both.")
    index = _bm25s().BM25(backend="auto", csc_backend="auto")
    index.index(documents, show_progress=False)
    known = np.diff(index.scores["indptr"]) > 0
    asked = [numbers for query in queries if known[numbers := [vocabulary[word] for word in query]].any()]

    def tiles() -> Iterator[tuple[int, int, torch.Tensor]]:
        for place, numbers in enumerate(asked):
            yield place, 0, torch.from_numpy(index.get_scores_from_ids(numbers))[None]

    return tiles, len(asked)


class _Documents:
    """Texts as numbers of words, made anew in each pass, since all of them would be the largest thing in memory.

    Words that are not in the vocabulary are number 0.
    """

    def __init__(self, texts: Sequence[str], vocab: dict[str, int]) -> None:
        self._texts, self.vocab = texts, vocab

    @property
    def ids(self) -> _Documents:
        """What bm25s looks for, itself."""
        return self

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[list[int]]:
        for words in _in_words(self._texts):
            yield [self.vocab.get(word, 0) for word in words]


def _in_words(texts: Sequence[str]) -> Iterator[list[str]]:
    """The words of each text, by the tokenizer of bm25s."""
    tokenize = _bm25s().tokenize
    for start in range(0, len(texts), _CHUNK):
        yield from tokenize(list(texts[start : start + _CHUNK]), return_ids=False, show_progress=False)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("Relevance by words needs bm25s: pip install 'corebatch[subset]'.") from error
    return bm25s
