"""How rows become tokens, and rows as text on the terminal, with what is trained of them marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from corebatch.config.settings import Settings
from corebatch.launch.telling import tell_mixture, tell_unused
from corebatch.mixture import row_sources
from corebatch.mixture.notices import shortened
from corebatch.rendering.sheet import table
from corebatch.text import decoded_parts, say, terminal
from corebatch.types import IGNORED

MOST_SOURCES = 20
MOST_CHARACTERS = 1500
"""Of a trained or an untrained part of a row."""
MARKS = (("⟦", "⟧"), ("⟪", "⟫"), (">>>", "<<<"), ("[[[", "]]]"), ("{{{{", "}}}}"))


def show_rows(dataset: Any, tokenizer: Any, console: Console, each: int = 1) -> None:
    """The first rows of each source, decoded from their ids, as the model reads them.

    Args:
        dataset: with the columns input_ids, labels, source.
        each: so many of a source.
    """
    rows: dict[str, list[int]] = {}
    for number, source in enumerate(row_sources(dataset)):
        own = rows.setdefault(source, [])
        if len(own) < each:
            own.append(number)
    shown = list(rows.items())[:MOST_SOURCES]
    read = [(source, dataset.with_format(None)[number]) for source, own in shown for number in own]
    texts = [
        list(decoded_parts(row["input_ids"], [label != IGNORED for label in row["labels"]], tokenizer))
        for _, row in read
    ]
    opens, closes = marks((text for row in texts for text, _ in row), console.encoding)
    say(console, f"Rows as the model reads them; what is trained stands between {opens} and {closes}", "italic")
    for (source, row), text in zip(read, texts, strict=True):
        trained = sum(label >= 0 for label in row["labels"])
        say(console, f"{source}: {len(row['input_ids']):,} tokens, {trained:,} trained", "bold")
        console.print(_body(text, opens, closes), soft_wrap=True)
    if len(rows) > len(shown):
        say(console, f"... and {len(rows) - len(shown):,} more sources")


def marks(texts: Iterable[str], encoding: str) -> tuple[str, str]:
    """A pair of marks that none of the texts has and the terminal can show."""
    everything = "".join(texts)
    for pair in MARKS:
        try:
            "".join(pair).encode(encoding)
        except (UnicodeEncodeError, LookupError):
            continue
        if not any(mark in everything for mark in pair):
            return pair
    return MARKS[-1]


def _body(parts_of_row: Sequence[tuple[str, bool]], opens: str, closes: str) -> Text:
    made = Text()
    for text, trained in parts_of_row:
        shown = shortened(text, MOST_CHARACTERS)
        shown = f"{opens}{shown}{closes}" if trained else shown
        made.append_text(terminal(shown, "green" if trained else "", lines=True))
    lines = made.split("\n", allow_blank=True)
    return Text("\n").join(Text("    ") + line for line in lines)


def show_data(settings: Settings, tokenizer: Any, dataset: Any, held_out: Any, console: Console, rows: int) -> None:
    """How rows become tokens, some of them, and the held-out sets."""
    data = settings.data
    template = "the tokenizer's own" if data.chat_template is None else data.chat_template
    console.print()
    console.print(
        table(
            "How rows become tokens",
            [
                {"what": "at most", "value": f"{data.max_length} tokens"},
                {"what": "separator between prompt and completion", "value": repr(data.separator)},
                {"what": "prompts are put into the chat template", "value": data.apply_chat_template},
                {"what": "chat template of conversations", "value": template},
                {"what": "trained turns of a conversation", "value": data.train_turns},
                {"what": "end of sequence, padding", "value": f"{tokenizer.eos_token}, {tokenizer.pad_token}"},
            ],
        )
    )
    console.print()
    if rows and len(dataset):
        show_rows(dataset, tokenizer, console, rows)
    if held_out is not None:
        console.print()
        tell_mixture(held_out, tokenizer, console, "Held-out sets (lengths in tokens)")
        tell_unused(held_out, console)
