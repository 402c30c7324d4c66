"""Batched generation gives what a plain loop gives for each prompt alone, and leaves everything as it was."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from corebatch.errors import InputError
from corebatch.evaluation import generate_answers

PROMPTS = ["2+2=", "a", "What is 17 - 4?", "How many legs have 3 cats?", "b:", "7*8="]


def slow_greedy(model: Any, tokenizer: Any, prompt: str, steps: int) -> str:
    """One prompt, no cache, no padding; end tokens end it."""
    ids = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def generate(model: Any, tokenizer: Any, prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
    settings = {"max_new_tokens": 12, "batch_size": 4, "stop": (), "progress": False}
    return generate_answers(model, tokenizer, prompts, **{**settings, **options})


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_equals_one_prompt_at_a_time(model: Any, tokenizer: Any, batch_size: int) -> None:
    expected = [slow_greedy(model.eval(), tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 3, "the random model should not say the same to everything"
    assert generate(model, tokenizer, batch_size=batch_size) == expected


def test_stop_string_cuts_the_text(model: Any, tokenizer: Any) -> None:
    whole = generate(model, tokenizer)
    stop = whole[0][5]
    assert generate(model, tokenizer, stop=[stop]) == [text.split(stop)[0].rstrip() for text in whole]


def test_leading_white_space_is_no_stop(tokenizer: Any) -> None:
    from corebatch.evaluation.generate import _Cutter

    cut = _Cutter(tokenizer, ["\n"], [tokenizer.eos_token_id])
    newline, seven = tokenizer("\n7")["input_ids"]
    assert cut([newline]) == ("", False)
    assert cut([newline, seven]) == ("7", False)
    assert cut([newline, seven, newline, seven]) == ("7", True)
    assert cut([seven, tokenizer.eos_token_id, seven]) == ("7", True)


def test_end_token_ends_a_row(model: Any, tokenizer: Any) -> None:
    whole = generate(model, tokenizer)
    model.generation_config.eos_token_id = tokenizer(whole[0][3])["input_ids"]  # a list of one
    texts = generate(model, tokenizer)
    assert texts == [text.split(whole[0][3])[0].rstrip() for text in whole]


def test_model_and_tokenizer_are_left_as_they_were(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    settings = model.generation_config
    for side in ("left", "right"):
        tokenizer.padding_side = side
        generate(model, tokenizer)
        assert tokenizer.padding_side == side
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is settings


def test_modes_and_settings_come_back_after_an_error(model: Any, tokenizer: Any) -> None:
    model.train()
    settings = model.generation_config
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, tokenizer)
    handle.remove()
    assert model.training
    assert model.generation_config is settings


def test_the_models_own_sampling_settings_do_not_count(model: Any, tokenizer: Any) -> None:
    expected = generate(model, tokenizer)
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=3, repetition_penalty=2.0)
    assert generate(model, tokenizer) == expected


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # raised inside peft
def test_peft_model(model: Any, tokenizer: Any) -> None:
    expected = generate(model, tokenizer)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    settings = adapted.generation_config
    assert generate(adapted, tokenizer) == expected  # a fresh adapter changes nothing
    assert adapted.generation_config is settings
    assert adapted.get_base_model().generation_config is settings


def test_global_random_state_is_untouched(model: Any, tokenizer: Any) -> None:
    before = torch.get_rng_state()
    generate(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_prompts(model: Any, tokenizer: Any) -> None:
    assert generate(model, tokenizer, []) == []


def test_a_progress_bar_goes_to_stderr_only(model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate(model, tokenizer, progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"stop": "\n"}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"prompts": ["a", ""]}, "prompt 1"),
    ],
)
def test_bad_input(model: Any, tokenizer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, **options)
