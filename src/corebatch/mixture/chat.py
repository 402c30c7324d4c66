"""Conversations as text, and which characters of it are trained.

A turn is found by rendering growing beginnings of the conversation with the chat template: what comes before
turn i (with the template's opening for the assistant) and what comes up to its end. Both must be beginnings
of the whole; a template for which they are not (some drop the reasoning of earlier turns) raises an error
that says what to do. The opening of the turn is not trained, its content and the template's end of turn are.
"""

from __future__ import annotations

from typing import Any, Protocol

import jinja2

from corebatch.errors import ConfigError, DataError
from corebatch.mixture.formats import Chat

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}"
)
"""What `chat_template="plain"` stands for: one "role: content" a line, end of sequence after each answer."""


class Render(Protocol):
    """Messages to text; with `opening`, followed by the beginning of an assistant's turn."""

    def __call__(self, messages: list[dict[str, str]], opening: bool = False) -> str: ...


def renderer(tokenizer: Any, chat_template: str | None) -> Render:
    """Renders with the template given ("plain": the built-in one), else the tokenizer's own.

    Raises:
        ConfigError: neither is there.
    """
    template = PLAIN_CHAT_TEMPLATE if chat_template == "plain" else chat_template
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"These rows need a chat template. The tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has "
            "none. Set `chat_template` to a Jinja template, or to 'plain' for lines of 'role: content'."
        )

    def render(messages: list[dict[str, str]], opening: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=opening
            )
        )

    return render


def render_chat(chat: Chat, where: str, render: Render, train_turns: str) -> tuple[str, list[tuple[int, int]]]:
    """The whole text, and the (start, stop) of its trained characters.

    Trained are the assistant's turns that are not blank and have something before them: all from
    `chat.first_trained` on, or with `train_turns="last"` the last of these.

    Raises:
        DataError: the template refuses the conversation, or does not grow turn by turn.
    """
    turns = [
        i
        for i, message in enumerate(chat.messages)
        if i >= max(chat.first_trained, 1) and message["role"] == "assistant" and message["content"].strip()
    ]
    if train_turns == "last":
        turns = turns[-1:]
    try:
        text = render(chat.messages)
        return text, [_span(chat.messages, i, text, render, where) for i in turns]
    except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{where}: the chat template refuses the conversation: {error}.") from error


def _span(messages: list[dict[str, str]], i: int, text: str, render: Render, where: str) -> tuple[int, int]:
    opened = render(messages[:i], opening=True)
    through = text if i + 1 == len(messages) else render(messages[: i + 1])
    # An opening that goes further than the turn itself (a forced "<think>") counts as far as both agree.
    start = _agreement(opened, through)
    grows = text.startswith(through)
    if start < len(opened):
        before = render(messages[:i])
        grows, start = grows and through.startswith(before), max(start, len(before))
    if not grows:
        raise DataError(
            f"{where}: the chat template does not render the first {i} or {i + 1} messages as the beginning "
            f"of all {len(messages)}, so turn {i + 1} cannot be found in the text. Set train_turns to 'last', "
            "or split the conversation into rows of one answer each."
        )
    return start, len(through)


def _agreement(a: str, b: str) -> int:
    """How many characters two texts have in common from the beginning."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def trained_tokens(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
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
