"""Documents cut into pieces of 2^k tokens, each of one document (Dataset Decomposition, arXiv 2405.13226, section 3.1).

A document of n tokens is cut by the binary digits of n: first its largest power of two, then that of what is left. What
is left below the shortest piece is dropped. Of a document that is longer than the longest piece, pieces are drawn until
what is left is shorter, each power with a probability of one over its tokens, so that all powers get equally many, as
in the official code; or they are all of the longest.

The official code keeps one token more in each piece, since its loop takes inputs and targets apart; here models shift
labels themselves, so a piece has 2^k positions and trains 2^k - 1 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch

from corebatch.errors import ConfigError, DataError
from corebatch.options import check_count
from corebatch.seeds import seeded

SHORTEST, LONGEST = 256, 8192
"""Tokens of pieces, by the official defaults (2^8 to 2^13)."""


def cut_document(length: int, shortest: int, longest: int, generator: torch.Generator | None = None) -> list[range]:
    """The pieces of a document, as positions of its tokens, from its start on without gaps.

    Args:
        length: tokens of the document.
        shortest, longest: tokens of pieces, powers of two.
        generator: draws the pieces of what is longer than `longest`; None: these are as long as they can be.
    """
    powers = [shortest << k for k in range((longest // shortest).bit_length())]
    pieces, start = [], 0
    while length - start >= shortest:
        left = length - start
        if left < 2 * longest:
            size = min(1 << (left.bit_length() - 1), longest)
        elif generator is None:
            size = longest
        else:
            rarely = 1 / torch.tensor(powers, dtype=torch.float64)
            size = powers[int(torch.multinomial(rarely, 1, generator=generator))]
        pieces.append(range(start, start + size))
        start += size
    return pieces


def cut_documents(
    documents: datasets.Dataset,
    *,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
    random: bool = True,
    seed: int = 0,
    column: str = "input_ids",
) -> datasets.Dataset:
    """A data set of pieces: `input_ids` of 2^k tokens, `labels` the same if there are none, the other columns of their
    document, cut alike where they have a value for each token.

    Args:
        documents: with the tokens of one document a row, ended by the tokenizer's end of text, say.
        shortest, longest: tokens of pieces, powers of two.
        random: whether pieces of a document longer than `longest` are drawn, as in the official code.
        seed: of these draws; each document has a generator of its own.
        column: with the tokens.

    Raises:
        ConfigError: lengths that are no powers of two, or the shortest above the longest.
        DataError: no such column, something else than lists of integers in it, or no document with a piece.
    """
    for name, value in (("shortest", shortest), ("longest", longest)):
        check_count(name, value, more=", a power of two")
        if value & (value - 1):
            raise ConfigError(f"{name} should be a power of two. Found {value}.")
    if shortest > longest:
        raise ConfigError(f"shortest should be at most longest. Found {shortest} above {longest}.")
    if column not in documents.column_names:
        raise DataError(
            f"Documents should have their tokens in the column {column!r}. Found the columns "
            f"{', '.join(documents.column_names)}."
        )

    def cut(batch: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        keys = ["input_ids" if key == column else key for key in batch]
        made: dict[str, list[Any]] = {key: [] for key in dict.fromkeys((*keys, "labels"))}
        for place, number in enumerate(numbers):
            row = {key: values[place] for key, values in batch.items()}
            tokens = row.pop(column)
            check_tokens(tokens, column, number)
            row |= {"input_ids": tokens, "labels": row.get("labels", tokens)}
            generator = seeded(seed, number, "pieces") if random and len(tokens) >= 2 * longest else None
            for piece in cut_document(len(tokens), shortest, longest, generator):
                for key, values in made.items():
                    one = row[key]
                    each = isinstance(one, list) and len(one) == len(tokens)
                    values.append(one[piece.start : piece.stop] if each else one)
        return made

    made = documents.with_format(None).map(
        cut, batched=True, with_indices=True, remove_columns=documents.column_names, load_from_cache_file=False
    )
    if not len(made):
        raise DataError(f"Documents should have pieces of {shortest} tokens. Found none in {len(documents)} documents.")
    return made


def check_tokens(tokens: Any, column: str, number: int) -> None:
    """Raises DataError unless they are a list of integers."""
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise DataError(
            f"The column {column!r} should hold lists of tokens. Found {type(tokens).__name__} in row {number}."
        )
