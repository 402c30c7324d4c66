"""Completions for tokenizers that write a blank before each text, as SentencePiece does.

Tokenised by itself, the completion "5" of "2 + 3 =" would become " 5" to such a tokenizer, which is not what the row
says. So it is tokenised behind a character that the blank goes to, and that character's tokens are taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Encode = Callable[[list[str]], list[list[int]]]
GUARDS = ("\n", ":", "a", "0", "\u4e2d")
"""Tried in this order, since a tokenizer may merge one of them with what follows."""


class Seam:
    """Whether a tokenizer needs this, found out by a trial, and the ids of texts that stand behind others. `encode`:
    texts -> ids of each, without special tokens."""

    def __init__(self, encode: Encode) -> None:
        self._guards = dict(zip(GUARDS, encode(list(GUARDS)), strict=True))
        alone, behind = encode(["b", "\nb"])
        first = self._guards[GUARDS[0]]
        self.needed = behind[: len(first)] == first and behind[len(first) :] != alone

    def encode(self, texts: Sequence[str], encode: Encode) -> list[list[int]]:
        """The ids of texts behind others. A text that merges with all of GUARDS is tokenised by itself."""
        ids: list[list[int] | None] = [None] * len(texts)
        for guard, own in self._guards.items():
            left = [i for i, made in enumerate(ids) if made is None]
            for i, made in zip(left, encode([guard + texts[i] for i in left]), strict=True):
                ids[i] = made[len(own) :] if made[: len(own)] == own else None
        left = [i for i, made in enumerate(ids) if made is None]
        alone = dict(zip(left, encode([texts[i] for i in left]), strict=True))
        return [made if made is not None else alone[i] for i, made in enumerate(ids)]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists have in common from the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
