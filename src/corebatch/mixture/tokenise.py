"""Rows to token ids and labels.

- Prompt and completion are tokenised apart and laid end to end, so that the boundary is exact, and without the
  blank that SentencePiece would write before a completion; between them stands `separator`, a part of the prompt,
  unless white space is there already. End of sequence is added once,
  after completions and running text.
- Conversations are tokenised as a whole, as `tokenizer.apply_chat_template` does; a token counts as trained
  when any of its characters lies in a trained turn. What begins and ends a conversation is up to the
  template.
- Beginning of sequence is added once, where the tokenizer itself would add it.
- Longer rows keep their first `max_length` tokens.
- A row that was tokenised before is only checked and cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.chat import Conversations, one_by_one, trained_tokens
from corebatch.mixture.formats import Canonical, Chat, Completion, Text, TokenIds, canonical
from corebatch.mixture.template import read_template
from corebatch.text import common
from corebatch.types import IGNORED

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokeniseOptions:
    """How rows become tokens.

    Attributes:
        max_length: tokens; what comes after is cut.
        apply_chat_template: wrap prompt + completion and instruction rows as turns of user and assistant.
        chat_template: in place of the tokenizer's own: a Jinja template or the path of a file with one (which is
            read at once); "plain": lines of "role: content"; "trl": the one that TRL trains with.
        separator: between prompt and completion when no template is applied. One of white space alone is left
            out where the prompt ends or the completion begins with white space; "" for none.
        train_turns: "all" assistant turns of a conversation, its "last", or "each": a row of each, which ends
            with it.
    """

    max_length: int = 1024
    apply_chat_template: bool = False
    chat_template: str | None = None
    separator: str = "\n"
    train_turns: str = "all"

    def __post_init__(self) -> None:
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 2:
            raise ConfigError(
                "`max_length` should be an integer of at least 2 tokens, since the first of a row is never "
                f"trained. Found {self.max_length!r}."
            )
        if self.train_turns not in ("all", "last", "each"):
            raise ConfigError(f"`train_turns` should be 'all', 'last' or 'each'. Found {self.train_turns!r}.")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError(f"`chat_template` should be a string. Found {self.chat_template!r}.")
        object.__setattr__(self, "chat_template", read_template(self.chat_template))
        if not isinstance(self.separator, str):
            raise ConfigError(f"`separator` should be a string. Found {self.separator!r}.")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One tokenised row.

    Attributes:
        input_ids: [T] token ids.
        labels: [T] the same ids where trained, -100 elsewhere.
        truncated: whether tokens were cut off.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def trained(self) -> int:
        """Tokens with a loss: labels are shifted by one, so the first never has one."""
        return len(self.labels) - self.labels.count(IGNORED) - (self.labels[:1] not in ([], [IGNORED]))

    @property
    def prompt_ids(self) -> list[int]:
        """[T'] what comes before the first trained token: the prompt to generate from."""
        first = next((i for i, label in enumerate(self.labels) if label != IGNORED), len(self.labels))
        return self.input_ids[:first]


class Tokeniser:
    """Tokenises canonical rows with one tokenizer and one set of options, many at a time."""

    def __init__(self, tokenizer: Any, options: TokeniseOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self._eos: int | None = tokenizer.eos_token_id
        self._start = _start_ids(tokenizer)
        self._seam = Seam(self._encode)
        self._vocabulary = len(tokenizer)
        self._warned = False
        self._conversations = Conversations(tokenizer, options.chat_template, options.train_turns)

    def __call__(self, rows: Sequence[Canonical], wheres: Sequence[str]) -> list[TokenRow]:
        """One TokenRow for each row; `wheres` say in messages where each comes from. Raises DataError: an id outside of
        the vocabulary, or a conversation that the template refuses; ConfigError: a conversation, and no chat template.
        """
        rows = [self._as_chat(row, where) for row, where in zip(rows, wheres, strict=True)]
        done: dict[int, TokenRow] = {}
        chats = [i for i, row in enumerate(rows) if isinstance(row, Chat)]
        plain = [i for i, row in enumerate(rows) if isinstance(row, Completion | Text)]
        done.update(zip(chats, self._chats([(rows[i], wheres[i]) for i in chats]), strict=True))
        done.update(zip(plain, self._plain([rows[i] for i in plain]), strict=True))
        for i, row in enumerate(rows):
            if isinstance(row, TokenIds):
                done[i] = self._given(row, wheres[i])
        return [done[i] for i in range(len(rows))]

    def each(self, row: Canonical, where: str) -> list[Canonical]:
        """The rows that one makes: itself; with `train_turns="each"` a conversation for each of its answers."""
        if self.options.train_turns != "each":
            return [row]
        row = self._as_chat(row, where)
        return [*one_by_one(row)] or [row] if isinstance(row, Chat) else [row]

    def _as_chat(self, row: Canonical, where: str) -> Canonical:
        if not isinstance(row, Completion):
            return row
        if self.options.apply_chat_template:
            return row.as_chat()
        if self.options.chat_template is not None and not self._warned:
            self._warned = True
            logger.warning(
                "%s: prompt and completion are not put into the `chat_template`. Set `apply_chat_template: true` "
                "for that.", where,
            )  # fmt: skip
        if row.context is not None:
            names = row.context.names
            raise DataError(
                f"{where}: {', '.join(map(repr, names))} beside prompt and completion can only be shown by a chat "
                f"template. Set `apply_chat_template: true`, or leave it out on purpose: `ignore_columns: "
                f"[{', '.join(names)}]` of the data set."
            )
        return row

    def _plain(self, rows: Sequence[Canonical]) -> list[TokenRow]:
        seams = [
            (self._prompt(row), row.completion)
            if isinstance(row, Completion)
            else ("", row.text if isinstance(row, Text) else "")
            for row in rows
        ]
        befores = self._encode([before for before, _ in seams])
        afters = self._encode([after for _, after in seams])
        if self._seam.needed:
            behind = [i for i, (before, after) in enumerate(seams) if before and after]
            for i, ids in zip(behind, self._seam.encode([seams[i][1] for i in behind], self._encode), strict=True):
                afters[i] = ids
        return [
            self._join(before, after, trained=bool(text.strip()))
            for (_, text), before, after in zip(seams, befores, afters, strict=True)
        ]

    def _prompt(self, row: Completion) -> str:
        """The prompt with the separator, where it is not blank or no white space is at the seam yet."""
        separator = self.options.separator
        blank_seam = not row.prompt or row.prompt[-1].isspace() or row.completion[:1].isspace()
        return row.prompt if blank_seam and not separator.strip() else row.prompt + separator

    def _join(self, before: list[int], after: list[int], trained: bool) -> TokenRow:
        if self._eos is not None and after[-1:] != [self._eos]:
            after = [*after, self._eos]
        if self._start and (before or after)[:1] != self._start:
            before = self._start + before
        labels = [IGNORED] * len(before) + (after if trained else [IGNORED] * len(after))
        return self._cut(before + after, labels)

    def _chats(self, rows: Sequence[tuple[Any, str]]) -> list[TokenRow]:
        if not rows:
            return []
        rendered = [self._conversations(chat, where) for chat, where in rows]
        if not getattr(self.tokenizer, "is_fast", False):
            return [self._chat_in_pieces(text, spans) for text, spans in rendered]
        encoding = self._call([text for text, _ in rendered], return_offsets_mapping=True)
        return [
            self._chat(ids, trained_tokens(offsets, spans))
            for ids, offsets, (_, spans) in zip(
                encoding["input_ids"], encoding["offset_mapping"], rendered, strict=True
            )
        ]

    def _chat_in_pieces(self, text: str, spans: list[tuple[int, int]]) -> TokenRow:
        """For tokenizers that give no offsets: the tokens of the text's beginnings say where a trained part lies."""
        ids, *edges = self._encode([text, *(text[:edge] for span in spans for edge in span)])
        trained = [False] * len(ids)
        for opening, through in zip(edges[0::2], edges[1::2], strict=True):
            start, stop = common(ids, opening), common(ids, through)
            stop += stop < len(through)  # a token over the edge has trained characters
            trained[start:stop] = [True] * (stop - start)
        return self._chat(ids, trained)

    def _chat(self, ids: list[int], trained: list[bool]) -> TokenRow:
        if self.options.chat_template == "plain" and self._start and ids[:1] != self._start:
            ids, trained = self._start + ids, [False] * len(self._start) + trained
        labels = [token if yes else IGNORED for token, yes in zip(ids, trained, strict=True)]
        return self._cut(ids, labels)

    def _given(self, row: TokenIds, where: str) -> TokenRow:
        largest = max(*row.input_ids, *row.labels)
        if largest >= self._vocabulary:
            raise DataError(f"{where}: token ids should be below the tokenizer's {self._vocabulary}. Found {largest}.")
        return self._cut(row.input_ids, row.labels)

    def _cut(self, ids: list[int], labels: list[int]) -> TokenRow:
        length = self.options.max_length
        return TokenRow(ids[:length], labels[:length], truncated=len(ids) > length)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._call(texts)["input_ids"] if texts else []

    def _call(self, texts: list[str], **options: Any) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


def tokenise_row(
    row: Mapping[str, Any], tokenizer: Any, max_length: int = 1024, *, where: str = "row", **options: Any
) -> TokenRow:
    """One raw row (of any form of `formats.FORMS`) as `load_mixture` would tokenise it.

    Args:
        row: column -> cell.
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens.
        where: how messages call the row.
        options: the other fields of TokeniseOptions.

    Raises:
        DataError: the row fits no form or holds something else than it should.
        ConfigError: a bad option, or a conversation without a chat template.
    """
    tokeniser = Tokeniser(tokenizer, TokeniseOptions(max_length=max_length, **options))
    rows = tokeniser.each(canonical(row, where), where)
    if len(rows) > 1:
        raise ConfigError(f"{where}: `train_turns: each` makes {len(rows)} rows of it; `load_mixture` gives them all.")
    return tokeniser(rows, [where])[0]


def _start_ids(tokenizer: Any) -> list[int]:
    """[] or [the beginning-of-sequence id], as the tokenizer itself begins a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


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
