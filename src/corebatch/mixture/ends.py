"""Whether answers end with a token that a model can stop at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from corebatch.mixture.store import row_sources
from corebatch.types import IGNORED

ROWS = 64
"""Rows of a source that are looked at, evenly over all of them."""


def endless_sources(dataset: Any, tokenizer: Any, max_length: int) -> list[str]:
    """The sources of which no answer ends with the end of sequence or another special token, white space aside.

    Rows that may have been cut at `max_length` say nothing; a source that has only such rows is not named.

    Args:
        dataset: with the columns input_ids, labels, source.
        tokenizer: whose special tokens count, and all of its added tokens.
    """
    stops = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    rows: dict[str, list[int]] = {}
    for number, source in enumerate(row_sources(dataset)):
        rows.setdefault(source, []).append(number)
    return [source for source, own in rows.items() if _endless(dataset, own, tokenizer, stops, max_length)]


def _endless(dataset: Any, own: Sequence[int], tokenizer: Any, stops: set[int], max_length: int) -> bool:
    seen = False
    for row in dataset.select(own[:: -(-len(own) // ROWS)]).with_format(None):
        if len(row["input_ids"]) >= max_length:
            continue
        seen = True
        if any(_stops(answer, tokenizer, stops) for answer in answers(row["labels"])):
            return False
    return seen


def answers(labels: Sequence[int]) -> Iterator[list[int]]:
    """The runs of trained tokens."""
    for trained, run in groupby(labels, key=lambda label: label != IGNORED):
        if trained:
            yield list(run)


def _stops(answer: Sequence[int], tokenizer: Any, stops: set[int]) -> bool:
    for token in reversed(answer):
        if token in stops:
            return True
        if tokenizer.decode([token]).strip():
            return False
    return False
