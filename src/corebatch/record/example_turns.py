"""An example as people read it: turns of a chat with their roles, or prompt and answer, and which of them are trained.

Rows are tokens by then, and the template that made them need not be the tokenizer's. So roles are read off the text: a
known role between the marks that templates put around it, of which there are few kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from corebatch.text import decoded_parts
from corebatch.types import IGNORED

TURNS = 8
"""Turns of an example that are kept: the first and the last ones."""
CHARACTERS = 300
"""Of a turn: its beginning and its end."""
END = 100

MASKS = ("completion_mask", "assistant_masks", "loss_mask")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "observation": "tool"}
_NAMES = "system|developer|user|human|assistant|model|gpt|bot|tool|ipython|observation"
_HEADS = (
    rf"<\|(?P<a>{_NAMES})\|>",  # <|user|>
    rf"(?:<\|?[a-z_]+\|?>)(?P<b>{_NAMES})(?:<\|?[a-z_]+\|?>|\n)",  # <|im_start|>user, <start_of_turn>user, Llama 3
    rf"(?:^|\n)(?P<c>{_NAMES}):",  # user: at the beginning of a line
    r"\[(?P<d>/?INST|SYSTEM_PROMPT|TOOL_RESULTS)\]",
)
_HEAD = re.compile("|".join(_HEADS), re.IGNORECASE)
_BRACKETS = {"inst": "user", "/inst": "assistant", "system_prompt": "system", "tool_results": "tool"}
_MARKS = re.compile(r"<\|[a-z_0-9]+\|>|</?s>|<(?:bos|eos|end_of_turn|pad)>|\[/(?:SYSTEM_PROMPT|TOOL_RESULTS)\]")


def turns_of(row: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]] | None:
    """The turns of a row of tokens as `role`, `text` (on one line, shortened) and `trained`, which is None where the
    row does not tell; None for a row without tokens, or without something that decodes them."""
    ids, decode = row.get("input_ids"), getattr(tokenizer, "decode", None)
    if ids is None or decode is None:
        return None
    ids = _plain(ids)
    trained = _trained(row, len(ids))
    parts = decoded_parts(ids, trained or [False] * len(ids), tokenizer)
    found = [turn for turn in _split(list(parts)) if turn["text"]]
    if trained is None:
        found = [{**turn, "trained": None} for turn in found]
    if len(found) > TURNS:
        left_out = {"role": "", "text": f"({len(found) - TURNS} turns are left out here)", "trained": None}
        found = [*found[: TURNS // 2], left_out, *found[-TURNS // 2 :]]
    return found


def _plain(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _trained(row: Mapping[str, Any], count: int) -> list[bool] | None:
    """Which tokens count in the loss: by labels, else by all masks that there are; None without either."""
    if row.get("labels") is not None:
        return [label != IGNORED for label in _plain(row["labels"])]
    masks = [_plain(row[key]) for key in MASKS if row.get(key) is not None]
    return [all(mask[i] for mask in masks) for i in range(count)] if masks else None


def _split(parts: Sequence[tuple[str, bool]]) -> Iterator[dict[str, Any]]:
    """Turns of parts of a text; where no role is found, what is trained is an answer and what precedes it a prompt."""
    roles = any(_HEAD.search(text) for text, _ in parts)
    both = len({trained for _, trained in parts}) > 1
    role, number, pieces = "text", 0, list[tuple[int, str, bool, str]]()
    for text, trained in parts:
        if not roles and both:
            role = "answer" if trained else "prompt"
        start = 0
        for head in _HEAD.finditer(text) if roles else ():
            pieces.append((number, role, trained, text[start : head.start()]))
            role, start, number = _role(head), head.end(), number + 1
        pieces.append((number, role, trained, text[start:]))
    for (_, role, trained), group in groupby(pieces, key=lambda piece: piece[:3]):
        text = _MARKS.sub(" ", " ".join(text for *_, text in group))
        yield {"role": role, "text": shortened(text, CHARACTERS, END), "trained": trained}


def _role(head: re.Match[str]) -> str:
    name = str(head[str(head.lastgroup)]).lower()
    return _BRACKETS.get(name, _ROLES.get(name, name))


def shortened(text: str, most: int = CHARACTERS, end: int = END) -> str:
    """On one line, at most so many characters: the beginning and the end of a longer one."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - end - 3].rstrip() + " … " + text[-end:].lstrip()
