"""Contents of conversations that hold the text of a special token: the tokenizer reads it as that token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from corebatch.mixture.examples import Example
from corebatch.mixture.formats import Chat, Completion

Found = dict[str, tuple[int, str, str]]
"""Label of a data set -> how many of its rows hold such a text, the first such text, and where it stands."""


def special_texts(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the texts of the tokenizer's special tokens; None if it has none."""
    texts = {token for token in tokenizer.all_special_tokens if token.strip()}
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def counted(
    examples: Iterable[Example], label: str, special: re.Pattern[str] | None, wrapped: bool, found: Found
) -> Iterator[Example]:
    """The examples, while those are counted in `found` of which a turn holds the text of a special token.

    Args:
        label: of the data set.
        special: see `special_texts`.
        wrapped: whether prompts and completions are put into the chat template; where not, their special tokens are
            the user's own template.
    """
    for example in examples:
        if special is not None:
            match = next(filter(None, map(special.search, _contents(example.row, wrapped))), None)
            if match is not None:
                count, token, where = found.get(label, (0, match.group(), example.where))
                found[label] = (count + 1, token, where)
        yield example


def _contents(row: Any, wrapped: bool) -> Iterator[str]:
    if isinstance(row, Chat):
        yield from (text for message in row.messages if isinstance(text := message.get("content"), str))
    elif wrapped and isinstance(row, Completion):
        yield from (row.prompt, row.completion)
