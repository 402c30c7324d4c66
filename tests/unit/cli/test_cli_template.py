"""`corebatch train` saves the tokenizer with the chat template that its rows were made with."""

import json

import pytest
import yaml
from transformers import AutoTokenizer

from corebatch.mixture import PLAIN_CHAT_TEMPLATE, attach_template

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": TURNS}) + "\n" for _ in range(40)))
    return ["--datasets", f"[{path}]"]


def said(folder):
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(TURNS, tokenize=False)


@pytest.mark.parametrize("lora", [True, False])
def test_model_and_checkpoints_chat_as_they_were_trained(corebatch, config, settings, chats, tmp_path, lora):
    if not lora:
        config.write_text(yaml.safe_dump({key: value for key, value in settings.items() if "lora" not in key}))
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    words = [*chats, "--chat_template", tmp_path / "mine.jinja"]
    code, _, error = corebatch("train", config, *words)
    assert code == 0, error
    for folder in ("run", "run/checkpoint-2", "run/checkpoint-4"):
        assert said(tmp_path / folder) == "user: Hi</s>assistant: Hello!</s>"
    assert (tmp_path / "run/adapter_config.json").is_file() is lora
    code, _, error = corebatch("train", config, *words, "--max_steps", 6, "--resume_from_checkpoint", "true")
    assert code == 0, error
    assert said(tmp_path / "run/checkpoint-6") == "user: Hi</s>assistant: Hello!</s>"


def test_a_name_that_is_none_is_refused_for_rows_without_chats_too(corebatch, config):
    code, _, error = corebatch("train", config, "--chat_template", "mine.jinja")
    assert code
    assert "Found 'mine.jinja', and no such file" in error


class Named:
    """A tokenizer with two templates."""

    def __init__(self):
        self.chat_template = {"default": "a{{ x }}", "tools": "b{{ x }}"}

    def get_chat_template(self, given, tools):
        return self.chat_template.get(given, given)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("plain", PLAIN_CHAT_TEMPLATE), ("tools", "b{{ x }}"), ("c{{ x }}", "c{{ x }}"), ("trl", None), (None, None)],
)
def test_what_is_attached(given, kept):
    tokenizer = Named()
    attach_template(tokenizer, given)
    assert tokenizer.chat_template == (kept or Named().chat_template)
