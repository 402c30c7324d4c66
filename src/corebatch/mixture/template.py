"""A chat template: where it comes from, how it renders, and what it is found to read by small trials.

Trials ask the template itself instead of knowing models by name: a conversation of unmistakable words is
rendered, and what comes out decides. Each is made once for a template, when a row first needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from corebatch.errors import ConfigError
from corebatch.mixture.formats import Chat
from corebatch.mixture.keys import THOUGHTS
from corebatch.mixture.turns import Message

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}"
)
"""What `chat_template="plain"` stands for: one "role: content" a line, end of sequence after each answer."""

REFUSALS = (
    *(jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError),
    *(ArithmeticError, RecursionError),
)
"""What a template may raise at a conversation that it does not take."""
LONGEST = 2**26
"""Characters that a template may make of one conversation: one that multiplies its text comes to an end."""

_MARKED = re.compile(r"{%-?\s*generation\s*-?%}")
_WORD = "Zq7kTurn{}wV"


def read_template(given: str | None) -> str | None:
    """The text of the file, where `given` is the path of one; else `given` itself. Raises ConfigError: the file is not
    text, or is empty."""
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        if not Path(given).expanduser().is_file():
            return given
        text = Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`chat_template`: the file {given} cannot be read: {error}.") from error
    if not text.strip():
        raise ConfigError(f"`chat_template`: the file {given} is empty.")
    return text


def attach_template(tokenizer: Any, given: str | None) -> None:
    """The tokenizer's own template becomes the one that its rows were made with, so that what is saved beside the model
    chats as it was trained. Nothing changes without one, nor for "trl", which marks what is trained in a text that is
    the tokenizer's own. Call it when all rows are read: they are known again by the tokenizer as it was.

    Raises:
        ConfigError: `given` is no template.
    """
    if given not in (None, "trl"):
        tokenizer.chat_template = ChatTemplate(tokenizer, read_template(given)).source()


def _trl_template(tokenizer: Any) -> str | None:
    """The template that TRL trains this tokenizer's conversations with; None: the tokenizer's own."""
    try:
        from trl.chat_template_utils import get_training_chat_template
    except ImportError as error:
        raise ConfigError(
            "`chat_template: trl` needs a TRL with training templates: pip install -U 'corebatch[trl]'."
        ) from error
    try:
        return get_training_chat_template(tokenizer)
    except (*REFUSALS,) as error:
        raise ConfigError(f"`chat_template: trl`: TRL has no training template for this tokenizer: {error}") from error


class ChatTemplate:
    """One tokenizer's template, or the one given in its place.

    Args:
        tokenizer: a Hugging Face tokenizer.
        given: a Jinja template; the name of one of the tokenizer's; "plain": the built-in one; "trl": what
            TRL trains with; None: the tokenizer's own.

    Raises:
        ConfigError: there is none, or `given` is none of these.
    """

    def __init__(self, tokenizer: Any, given: str | None) -> None:
        self._tokenizer = tokenizer
        self._given = given
        self._in_parts: bool | None = None  # found out with the first conversation
        own = getattr(tokenizer, "chat_template", None)
        named = isinstance(own, Mapping) and given in own
        if given == "plain":
            self._given = PLAIN_CHAT_TEMPLATE
        elif given == "trl":
            self._given = _trl_template(tokenizer)
        elif given is not None and "{" not in given and not named:
            raise ConfigError(
                f"`chat_template` renders no message: it should be a Jinja template, the path of a file with one, "
                f"'plain' or 'trl', not a name. Found {given!r}, and no such file."
            )
        if self._given is None and not own:
            raise ConfigError(
                f"These rows need a chat template. The tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has "
                "none. Set `chat_template` to a Jinja template, the path of a file with one, or to 'plain' for "
                "lines of 'role: content'."
            )

    def render(self, chat: Chat, messages: list[Message], opening: bool = False) -> str:
        """Messages to text; with `opening`, followed by the beginning of an assistant's turn."""
        options = {"documents": chat.documents, **chat.options} if chat.documents else dict(chat.options)
        options.pop("add_generation_prompt", None)
        text = self._tokenizer.apply_chat_template(
            self._written(messages),
            tools=chat.tools,
            chat_template=self._given,
            tokenize=False,
            add_generation_prompt=opening,
            **options,
        )
        if len(text) > LONGEST:
            raise ValueError(f"it should make at most {LONGEST} characters of a conversation, and made {len(text)}")
        return str(text)

    def _written(self, messages: list[Message]) -> list[Message]:
        if not self._in_parts:
            return messages
        contents = [message.get("content") for message in messages]
        return [
            {**message, "content": [{"type": "text", "text": text}]} if isinstance(text, str) else message
            for message, text in zip(messages, contents, strict=True)
        ]

    def source(self, chat: Chat | None = None) -> str:
        """The Jinja text; which of several may depend on whether there are tools."""
        return str(self._tokenizer.get_chat_template(self._given, chat.tools if chat else None))

    @cached_property
    def marked(self) -> bool:
        """Whether the template says itself what is trained, by `{% generation %}`."""
        return bool(_MARKED.search(self.source()))

    def common_tokens(self, a: str, b: str) -> int:
        """How many characters the tokens take that both texts begin with; 0 for tokenizers without offsets."""
        if not getattr(self._tokenizer, "is_fast", False):
            return len(a) if b.startswith(a) else 0
        x, y = (self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in (a, b))
        common = 0
        for one, other, (_, stop) in zip(x["input_ids"], y["input_ids"], x["offset_mapping"], strict=False):
            if one != other:
                break
            common = int(stop)
        return common

    def marks(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the (start, stop) of what the template marks as generated."""
        texts, spans = render_jinja_template(
            conversations=[self._written(chat.messages)],
            tools=chat.tools,
            documents=chat.documents,
            chat_template=self.source(chat),
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **chat.options},
        )
        return str(texts[0]), [(start, stop) for start, stop in spans[0] if stop > start]

    @cached_property
    def rewrites(self) -> bool:
        """Whether an answer without thoughts reads otherwise once others follow it."""
        turns = self._trial({})
        return turns is not None and not turns[1].startswith(turns[0])

    @cached_property
    def thought_keys(self) -> tuple[str, ...]:
        """The keys under which the thoughts of a last answer are shown."""
        word = _WORD.format("t")
        shown = []
        for key in THOUGHTS:
            turns = self._trial({key: word})
            if turns is not None and word in turns[0]:
                shown.append(key)
        return tuple(shown)

    @cached_property
    def takes_json_arguments(self) -> bool:
        """Whether the arguments of a call, given as a string of JSON, are shown as they are."""
        arguments = f'{{"{_WORD.format("a")}": 1}}'
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = self._trial({"tool_calls": [call]})
        return turns is not None and arguments in turns[0]

    def _wants_parts(self) -> bool:
        """Whether contents are shown as lists of parts only, as by templates of models that see pictures."""
        word = _WORD.format(1)
        self._in_parts = True
        in_parts = self._trial({})
        self._in_parts = False
        in_string = self._trial({})
        return bool(in_parts and word in in_parts[0] and not (in_string and word in in_string[0]))

    def _trial(self, first: Message) -> tuple[str, str] | None:
        """A conversation of one answer (with more keys, `first`) and of two; None: the template refuses it."""
        words = [_WORD.format(i) for i in range(4)]
        messages: list[Message] = [
            {"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, words, strict=True)
        ]
        messages[1] |= first
        chat = Chat(messages)
        try:
            return self.render(chat, messages[:2]), "" if first else self.render(chat, messages)
        except REFUSALS:
            return None

    def adapted(self, chat: Chat) -> Chat:
        """The conversation with thoughts and arguments in the form that this template reads."""
        if self._in_parts is None:
            self._in_parts = self._wants_parts()
        if not any(message.get("tool_calls") or any(map(message.get, THOUGHTS)) for message in chat.messages):
            return chat
        messages = [self._with_arguments(self._with_thoughts(message)) for message in chat.messages]
        return Chat(messages, chat.first_trained, chat.untrained, chat.tools, chat.documents, chat.options)

    def _with_thoughts(self, message: Message) -> Message:
        key = next((name for name in THOUGHTS if message.get(name)), None)
        if key is None or key in self.thought_keys or not self.thought_keys:
            return message
        return {self.thought_keys[0] if name == key else name: value for name, value in message.items()}

    def _with_arguments(self, message: Message) -> Message:
        calls = message.get("tool_calls")
        if not calls or self.takes_json_arguments:
            return message
        return {**message, "tool_calls": [_with_mapping(call) for call in calls]}


def _with_mapping(call: Message) -> Message:
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    return {**call, "function": {**function, "arguments": json.loads(arguments or "{}")}}
