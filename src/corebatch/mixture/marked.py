"""A tokenised row as text, with what is trained marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from corebatch.types import IGNORED


def parts(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """The row's text in parts, special tokens included, and whether each is trained.

    A part is what the text grows by: tokenizers that drop the first blank of a text do so once. `input_ids`, `labels`:
    [T] each.
    """
    ids, before = list(input_ids), ""
    start = 0
    for trained, run in groupby(labels, key=lambda label: label != IGNORED):
        end = start + len(list(run))
        text = _decoded(tokenizer, ids[:end])
        yield text[len(before) :] if text.startswith(before) else _decoded(tokenizer, ids[start:end]), trained
        start, before = end, text


def shortened(text: str, most: int) -> str:
    """The text, or its two ends with what is left out counted."""
    if len(text) <= most:
        return text
    head, tail = 2 * most // 3, most // 3
    return f"{text[:head]} [... {len(text) - head - tail:,} characters ...] {text[-tail:]}"


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
