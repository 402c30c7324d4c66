"""Conversations -> text and trained characters, with the check that nothing of the row is lost on the way."""

from __future__ import annotations

from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.chat import Span, render_chat
from corebatch.mixture.formats import Chat
from corebatch.mixture.shown import check_shown, shape, with_words
from corebatch.mixture.template import ChatTemplate


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
