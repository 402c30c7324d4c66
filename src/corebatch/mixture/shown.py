"""Whether the text of a conversation shows all that the row gives: what a template drops is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.formats import Chat
from corebatch.mixture.keys import THOUGHTS
from corebatch.mixture.turns import Message

_BLOCK = re.compile(r"</?think>")
_WORD = "Zq7kShown{}wV"


def check_shown(chat: Chat, text: str, trained: frozenset[int], where: str, source: str) -> None:
    """Every content, thought of a trained turn, call, tool, document and option is in the text, or is read.

    Args:
        chat: the conversation.
        text: as the template renders it.
        trained: positions of the turns that are trained; thoughts of others may be dropped, as they are in use.
        source: the template's Jinja text.

    Raises:
        DataError: naming the first part that is not shown, and what to do.
    """
    missing = next((place for place, part in _parts(chat, trained) if not _within(part, text)), None)
    if missing is None:
        missing = next((f"option {name!r}" for name in chat.options if name not in source), None)
    if missing is None:
        return
    contents = [part for i in range(len(chat.messages)) for part in _contents(chat.messages[i], thoughts=True)]
    if not any(_within(part, text) for part in contents):
        raise DataError(
            f"{where}: `chat_template` renders no message: it should be a Jinja template that does, or the path of a "
            f"file with one. It gives {text[:60]!r}."
        )
    raise DataError(
        f"{where}: the chat template does not show {missing}, so it would be lost. Use a template that does "
        "(`chat_template`), take it out of the row, or name its key in `ignore_columns` of the data set."
    )


def with_words(chat: Chat) -> Chat:
    """The same conversation with an unmistakable word for each content and thought."""
    messages = []
    for i, message in enumerate(chat.messages):
        words = {
            key: _WORD.format(f"{key[0]}{i}") for key in (*THOUGHTS, "content") if (message.get(key) or "").strip()
        }
        messages.append({**message, **words})
    return Chat(messages, chat.first_trained, chat.untrained, chat.tools, chat.documents, chat.options)


def shape(chat: Chat) -> tuple[Any, ...]:
    """What conversations have in common of which a template drops the same parts: turns and their neighbours."""
    turns = set()
    before, last = None, len(chat.messages) - 1
    for i, message in enumerate(chat.messages):
        keys = tuple(sorted(key for key, value in message.items() if value))
        turns.add((before, message["role"], keys, i == last, i in chat.untrained, i < chat.first_trained))
        before = message["role"]
    return frozenset(turns), bool(chat.tools), bool(chat.documents), repr(chat.options)


def _parts(chat: Chat, trained: frozenset[int]) -> Iterator[tuple[str, str]]:
    """(how a message calls it, the text of it)."""
    for i, message in enumerate(chat.messages):
        at = f"message {i + 1} ({message['role']})"
        for part in _contents(message, thoughts=i in trained):
            yield f"{at}: its content", part
        if i in trained:
            yield from ((f"{at}: its {key!r}", message[key]) for key in THOUGHTS if message.get(key))
        for call in message.get("tool_calls") or ():
            yield from ((f"{at}: its 'tool_calls'", part) for part in _call_parts(call))
        if message.get("name") and message["role"] in ("user", "assistant", "system", "developer"):
            yield f"{at}: its 'name'", message["name"]
    for tool in chat.tools or ():
        function = tool.get("function", tool)
        for key in ("name", "description"):
            if isinstance(function, Mapping) and isinstance(function.get(key), str):
                yield f"the {key} of a tool ('tools')", function[key]
    for document in chat.documents or ():
        yield from (("a document ('documents')", part) for part in document.values() if isinstance(part, str))


def _contents(message: Message, thoughts: bool) -> list[str]:
    """The content, in two where a block of thoughts ends; without those thoughts where they may be dropped."""
    content = message.get("content") or ""
    if message["role"] != "assistant" or "</think>" not in content:
        return [content]
    parts = _BLOCK.split(content)
    return parts if thoughts else parts[-1:]


def _call_parts(call: Message) -> Iterator[str]:
    function = call["function"]
    yield function["name"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    for key, value in (arguments or {}).items():
        yield key
        if isinstance(value, str):
            yield value


def _within(part: Any, text: str) -> bool:
    """Whether the text shows the part: as it is, as JSON writes it, or but for white space."""
    part = str(part).strip()
    if not part or part in text:
        return True
    if any(json.dumps(part, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (True, False)):
        return True
    return "".join(part.split()) in "".join(text.split())
