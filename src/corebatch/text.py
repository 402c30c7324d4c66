"""Text of users (names of sources, files, folders and columns; rows) as plain text, wherever it is shown.

A terminal obeys control characters, rich reads `[red]` as a style, Markdown and HTML have signs of their own: none of
them should be taken from a user's text. HTML has `html.escape`; these are the others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Format characters that belong to writing (Persian, Hindi, emoji) and move nothing."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
_AT_THE_START = re.compile(r"^(\s*\d*)([#>=]|[-+.)](?=\s|-|$))")


def visible(text: object, *, lines: bool = False) -> str:
    """The text with control characters, direction overrides and lone surrogates written out, as in \\x1b. `lines`:
    keeps line ends; else the text is one line."""
    return "".join(
        _escaped(c) if unicodedata.category(c) in _SHOWN and c not in _JOINERS and not (lines and c == "\n") else c
        for c in str(text)
    )


def _escaped(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def terminal(text: object, style: str = "", *, lines: bool = False) -> Text:
    """Text for rich that is printed as it is: no markup, no control characters."""
    from rich.text import Text

    return Text(visible(text, lines=lines), style=style)


def say(console: Console, text: object, style: str = "") -> None:
    """Prints a line of plain text, not broken into several; what reads standard output finds it whole."""
    console.print(terminal(text, style, lines=True), soft_wrap=True)


def markdown(text: object) -> str:
    """The text for running Markdown, a table's cell or a link's words: on one line, its signs escaped."""
    plain = _MARKDOWN.sub(r"\\\1", visible(text).replace("&", "&amp;").replace("<", "&lt;"))
    return _AT_THE_START.sub(r"\1\\\2", plain)


def markdown_code(text: object) -> str:
    """The text as a span of code, fenced by more backticks than it has in a row."""
    plain = visible(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else ""
    return f"{fence}{space}{plain}{space}{fence}"


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """How many elements (characters, tokens) two sequences have in common from the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def decoded_parts(ids: Sequence[int], trained: Sequence[bool], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """A row's text in parts, special tokens included, and whether each is trained.

    A part is what the text grows by: tokenizers that drop the first blank of a text do so once. `ids`, `trained`: [T]
    each.
    """

    def decoded(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    start, before = 0, ""
    for is_trained, run in groupby(trained):
        end = start + len(list(run))
        text = decoded(ids[:end])
        yield text[len(before) :] if text.startswith(before) else decoded(ids[start:end]), is_trained
        start, before = end, text
