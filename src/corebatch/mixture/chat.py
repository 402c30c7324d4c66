"""Conversations as text, and which characters of it are trained.

A turn is found by rendering growing beginnings of the conversation with the chat template: what comes before
turn i (with the template's opening for the assistant) and what comes up to its end. Both must be beginnings
of the whole. The opening of the turn is not trained, its content and the template's end of turn are; so is a
block of thoughts that the template itself opens.

A template that writes an answer otherwise once others follow (Qwen3 drops its thoughts) is put together turn
by turn: `splice`. A template with `{% generation %}` says itself what is trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.formats import Chat
from corebatch.mixture.keys import THOUGHTS
from corebatch.mixture.shown import check_shown, shape, with_words
from corebatch.mixture.splice import ONE_BY_ONE, spliced
from corebatch.mixture.template import REFUSALS, ChatTemplate
from corebatch.text import common

Span = tuple[int, int]
_OPEN_THOUGHTS = re.compile(r"<think>\s*(</think>\s*)?$")


def render_chat(chat: Chat, where: str, template: ChatTemplate, train_turns: str) -> tuple[str, dict[int, Span]]:
    """The whole text, and position of a turn -> (start, stop) of its trained characters.

    Trained are the assistant's turns that say something and have something before them: all from `chat.first_trained`
    on but `chat.untrained`; with `train_turns="last"` the last of the former, if trained. Raises DataError: the
    template refuses the conversation, or turns cannot be found in its text.
    """
    turns = answers(chat)
    if train_turns == "last":
        turns = turns[-1:]
    try:
        if template.marked:
            text, spans = _marked(chat, turns, template, where)
        elif turns and template.rewrites and turns != [len(chat.messages) - 1]:
            text, spans = spliced(chat, template, where, _start)
        else:
            text = template.render(chat, chat.messages)
            spans = {i: _span(chat, i, text, template, where) for i in turns}
    except REFUSALS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the chat template refuses the conversation: {error}.") from error
    return text, {i: spans[i] for i in turns if i not in chat.untrained}


def answers(chat: Chat) -> list[int]:
    """Positions of the turns that may be trained, whatever the row's weights say of them."""
    return [
        i
        for i, message in enumerate(chat.messages)
        if i >= max(chat.first_trained, 1)
        and message["role"] == "assistant"
        and ((message.get("content") or "").strip() or any(map(message.get, ("tool_calls", *THOUGHTS))))
    ]


def one_by_one(chat: Chat) -> list[Chat]:
    """A conversation for each answer, which ends with it; what comes before is context only."""
    return [
        Chat(chat.messages[: i + 1], i, chat.untrained, chat.tools, chat.documents, chat.options)
        for i in answers(chat)
        if i not in chat.untrained
    ]


def _span(chat: Chat, i: int, text: str, template: ChatTemplate, where: str) -> Span:
    messages = chat.messages
    opened = template.render(chat, messages[:i], opening=True)
    through = text if i + 1 == len(messages) else template.render(chat, messages[: i + 1])
    # An opening that goes further than the turn itself (a forced "[think]") counts as far as both agree.
    start = _start(opened, through)
    grows = text.startswith(through)
    if _agreement(opened, through) < len(opened):
        before = template.render(chat, messages[:i])
        grows, start = grows and through.startswith(before), max(start, len(before))
    if not grows:
        raise DataError(
            f"{where}: the chat template does not render the first {i} or {i + 1} messages as the beginning "
            f"of all {len(messages)}, so turn {i + 1} cannot be found in the text (or its thoughts are dropped). "
            f"{ONE_BY_ONE}"
        )
    return start, len(through)


def _start(opened: str, through: str) -> int:
    """Where a turn begins in the text that ends with it: behind the opening, thoughts that it opens excepted."""
    return _agreement(_OPEN_THOUGHTS.sub("", opened), through)


def _marked(chat: Chat, turns: list[int], template: ChatTemplate, where: str) -> tuple[str, dict[int, Span]]:
    """By the template's own marks: one for each turn of the assistant, in order."""
    text, marks = template.marks(chat)
    speakers = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if len(marks) == len(speakers) + 1 and marks[-1][0] == marks[-2][1]:  # an end of sequence behind the last turn
        marks = [*marks[:-2], (marks[-2][0], marks[-1][1])]
    if len(marks) != len(speakers):
        raise DataError(
            f"{where}: the chat template marks {len(marks)} parts as generated in a conversation with "
            f"{len(speakers)} turns of the assistant, so it cannot be told which part is whose."
        )
    spans = dict(zip(speakers, marks, strict=True))
    return text, {i: spans[i] for i in turns}


def _agreement(a: str, b: str) -> int:
    """As `common`, at once where one text begins the other."""
    return len(a) if b.startswith(a) else common(a, b)


def trained_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """[T] for each token whether it is trained: whether any of its characters is.

    `offsets` [T] are the (start, stop) of each token in the text; a tokenizer that trims them gives a token
    of blanks as (stop, stop), which belongs to the span that it ends in. Both lists ascend.
    """
    trained, k = [], 0
    for start, stop in offsets:
        while k < len(spans) and (start > spans[k][1] or spans[k][1] <= start < stop):
            k += 1
        if k == len(spans):
            trained.append(False)
            continue
        first, last = spans[k]
        trained.append(first < stop and (start < last or start == stop == last))
    return trained


class Conversations:
    """Renders conversations with one template. The template is looked for with the first: other rows need none.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat_template, train_turns: see TokeniseOptions.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, train_turns: str) -> None:
        self._tokenizer = tokenizer
        self._given = chat_template
        self._train_turns = train_turns
        self._template: ChatTemplate | None = None
        self._shapes: set[Any] = set()

    def __call__(self, chat: Chat, where: str) -> tuple[str, list[Span]]:
        """The text, and the ascending (start, stop) of its trained characters.

        Each text is searched for what the row gives. Words as short as "4" may stand in it by chance; so the first
        conversation of each shape is also tried with words that cannot. Raises DataError: the template refuses the
        conversation, or drops a part of it; ConfigError: there is no template.
        """
        if self._template is None:
            self._template = ChatTemplate(self._tokenizer, self._given)
        template, chat = self._template, self._template.adapted(chat)
        text, spans = render_chat(chat, where, template, self._train_turns)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: the conversation holds half a surrogate pair: no tokenizer takes it.") from error
        check_shown(chat, text, frozenset(spans), where, template.source(chat))
        self._try_shape(chat, where, template)
        return text, [spans[i] for i in sorted(spans)]

    def _try_shape(self, chat: Chat, where: str, template: ChatTemplate) -> None:
        seen = shape(chat)
        if seen in self._shapes:
            return
        self._shapes.add(seen)
        worded = with_words(chat)
        try:
            text, spans = render_chat(worded, where, template, self._train_turns)
        except DataError:
            return  # a template that looks into contents may refuse such words
        check_shown(worded, text, frozenset(spans), where, template.source(chat))
