"""Conversations of several answers on templates that rewrite earlier answers, such as Qwen3's.

Such a template shows an answer in one form while it is the last (with its thoughts, or an empty block of
them) and in another once others follow. Trained is the form that the model has to write, so every answer
stands in the text as it reads when it is the last, and so it stays for what follows: the text that TRL's
training templates give. It is put together of pieces: behind answer k comes what the template writes behind it
in the conversation that goes on. A word put into the answer's place finds where that begins.
"""

from __future__ import annotations

from collections.abc import Callable

from corebatch.errors import DataError
from corebatch.mixture.formats import Chat
from corebatch.mixture.template import ChatTemplate

ONE_BY_ONE = (
    "Set `train_turns: each`, which keeps all answers as rows of one answer each, as the model sees them in use; "
    "or 'last', which trains the last alone."
)
_PLACE = "Zq7kPlaceHolder4wV"


def spliced(
    chat: Chat, template: ChatTemplate, where: str, start_of: Callable[[str, str], int]
) -> tuple[str, dict[int, tuple[int, int]]]:
    """The text, and position of each turn of the assistant -> (start, stop) of what is trained of it. `start_of`: (text
    with the opening, text with the turn) -> where the turn begins. Raises DataError: the pieces do not fit together."""
    messages = chat.messages
    speakers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    text = ""
    spans: dict[int, tuple[int, int]] = {}
    previous: int | None = None
    for i in speakers:
        through = template.render(chat, messages[: i + 1])
        start = start_of(template.render(chat, messages[:i], opening=True), through)
        if previous is not None:
            piece, end = _behind(chat, previous, i + 1, template, where)
            text = text[: len(text) - end]
            spans[previous] = (spans[previous][0], len(text))
            if not through.endswith(piece) or start < len(through) - len(piece):
                raise _unfit(where, i)
            text += piece
        else:
            text = through
        spans[i] = (start - len(through) + len(text), len(text))
        previous = i
    if previous is not None and previous + 1 < len(messages):
        piece, end = _behind(chat, previous, len(messages), template, where)
        text = text[: len(text) - end]
        spans[previous] = (spans[previous][0], len(text))
        text += piece
    return text, spans


def _behind(chat: Chat, i: int, stop: int, template: ChatTemplate, where: str) -> tuple[str, int]:
    """What follows turn i and its end in the first `stop` messages, and how many characters of its end as
    the last turn give way to that (an end of sequence that only stands at the very end)."""
    messages = list(chat.messages)
    messages[i] = {**messages[i], "content": _PLACE}
    last, going_on = template.render(chat, messages[: i + 1]), template.render(chat, messages[:stop])
    if last.count(_PLACE) != 1 or going_on.count(_PLACE) != 1:
        raise _unfit(where, i)
    end, rest = last.partition(_PLACE)[2], going_on.partition(_PLACE)[2]
    kept = len(end) if rest.startswith(end) else template.common_tokens(end, rest)
    if not kept:  # the turn's end cannot be told from what follows it
        raise _unfit(where, i)
    return rest[kept:], len(end) - kept


def _unfit(where: str, i: int) -> DataError:
    return DataError(
        f"{where}: the chat template writes turn {i + 1} otherwise once others follow, and the two forms do not fit "
        f"together. {ONE_BY_ONE} `chat_template: trl` takes the template that TRL trains with, if it has one."
    )
