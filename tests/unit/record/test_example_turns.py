"""Examples as chats: roles in the forms that templates have, and what is trained of them."""

import pytest
import torch

from corebatch.record.example_turns import CHARACTERS, TURNS, turns_of


class Characters:
    """A token is a character."""

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        return "".join(map(chr, ids))


def row(*parts):
    """Of texts and whether they are trained."""
    ids = [ord(c) for text, _ in parts for c in text]
    labels = [ord(c) if trained else -100 for text, trained in parts for c in text]
    return {"input_ids": ids, "labels": labels}


def told(found):
    return [(turn["role"], turn["text"], turn["trained"]) for turn in found]


CHAT = [("system", "Be kind.", False), ("user", "Hello?", False), ("assistant", "Hi there.", True)]

FORMS = {
    "ChatML": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n",
        "Hi there.<|im_end|>\n",
    ),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Hi there.<|eot_id|>",
    ),
    "Zephyr": ("<|system|>\nBe kind.</s>\n<|user|>\nHello?</s>\n<|assistant|>\n", "Hi there.</s>\n"),
    "Gemma": (
        "<bos><start_of_turn>system\nBe kind.<end_of_turn>\n<start_of_turn>user\nHello?<end_of_turn>\n"
        "<start_of_turn>model\n",
        "Hi there.<end_of_turn>\n",
    ),
    "Mistral": ("<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hello?[/INST]", "Hi there.</s>"),
    "plain": ("system: Be kind.\nuser: Hello?\nassistant:", " Hi there.</s>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_roles_in_the_forms_that_templates_have(form):
    prompt, answer = FORMS[form]
    assert told(turns_of(row((prompt, False), (answer, True)), Characters())) == CHAT


def test_an_answer_that_is_not_trained_is_not_marked():
    text = "<|user|>\nOne?\n<|assistant|>\n", "Two.</s>\n", "<|user|>\nSure?\n<|assistant|>\n", "No.</s>"
    found = turns_of(row(*zip(text, (False, False, False, True), strict=True)), Characters())
    assert told(found) == [
        ("user", "One?", False),
        ("assistant", "Two.", False),
        ("user", "Sure?", False),
        ("assistant", "No.", True),
    ]


def test_prompt_and_answer_where_there_are_no_roles():
    found = turns_of(row(("Question: two and two?\nAnswer:", False), (" four", True)), Characters())
    assert told(found) == [("prompt", "Question: two and two? Answer:", False), ("answer", "four", True)]
    assert told(turns_of(row(("All of it. Tell the user: no.", True)), Characters())) == [
        ("text", "All of it. Tell the user: no.", True)
    ]


def test_masks_stand_for_labels_and_without_either_nothing_is_said():
    ids = torch.tensor([ord(c) for c in "ab"])
    masked = {"input_ids": ids, "completion_mask": torch.tensor([0, 1]), "assistant_masks": [1, 1]}
    assert told(turns_of(masked, Characters())) == [("prompt", "a", False), ("answer", "b", True)]
    assert told(turns_of({**masked, "assistant_masks": [1, 0]}, Characters())) == [("text", "ab", False)]
    assert told(turns_of({"input_ids": ids}, Characters())) == [("text", "ab", None)]
    assert turns_of({"input_ids": ids}, None) is None
    assert turns_of({"text": "ab"}, Characters()) is None


def test_long_chats_and_long_turns_are_cut():
    parts = [(f"<|user|>\n{n} {'word ' * 200}end{n}\n", False) for n in range(TURNS + 3)]
    found = turns_of(row(*parts), Characters())
    assert [turn["text"].split()[0] for turn in found if turn["role"]] == [*"0123", "7", "8", "9", "10"]
    assert found[TURNS // 2] == {"role": "", "text": "(3 turns are left out here)", "trained": None}
    assert all(len(turn["text"]) <= CHARACTERS for turn in found)
    assert found[0]["text"].endswith("end0")
